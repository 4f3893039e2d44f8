import json
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from resources import endpoint
from resources.backend_settings import EndpointModelSettings
from resources.budget import Spent
from resources.endpoint_model import EndpointLanguageModel
from resources.language_model import Conversation, Reply, Sampling
from resources.outcome import Failed, Outcome, Skipped, Unavailable
from tests.resources.stub_endpoint import Answer, Asked, Behaviour, Failing, StubEndpoint, completion, echo, error

SAMPLING = Sampling(temperature=0.9, top_p=0.8, max_new_tokens=77)
SCHEMA = {"type": "object", "properties": {"harmless": {"type": "boolean"}}, "required": ["harmless"]}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(endpoint, "FIRST_BACKOFF", 0.01)


def asking(text: str) -> Conversation:
    return [{"role": "system", "content": "Rewrite."}, {"role": "user", "content": text}]


def settings(base_url: str = "http://server/v1", **changes: Any) -> EndpointModelSettings:
    values = {"base_url": base_url, "model": "m", "concurrency": 8, "timeout": 30, "retries": 2, **changes}
    return EndpointModelSettings.model_validate(values)


def generate(
    behaviour: Behaviour, texts: Sequence[str] = ("a",), schema: Any = None, **changes: Any
) -> tuple[list[Outcome[Reply]], StubEndpoint, EndpointLanguageModel]:
    with StubEndpoint(behaviour) as stub:
        model = EndpointLanguageModel(settings(stub.base_url, **changes))
        outcomes = model.generate([asking(text) for text in texts], SAMPLING, range(len(texts)), schema=schema)
        return outcomes, stub, model


def answering(body: str) -> Behaviour:
    return lambda _: Answer(body)


def sent(**changes: Any) -> dict[str, Any]:
    """The body that the server got."""
    _, stub, _ = generate(echo, **changes)
    body: dict[str, Any] = stub.asked[0].body
    return body


# ---- the contract of language models --------------------------------------------------------------------------------


def test_replies_come_in_the_order_of_the_questions() -> None:
    def the_first_takes_longest(asked: Asked) -> Answer:
        return Answer(echo(asked).body, seconds=0.2 / (1 + asked.body["seed"]))

    outcomes, _, _ = generate(the_first_takes_longest, [f"q{i}" for i in range(20)])
    assert outcomes == [Reply(f"re: q{i} #{i}", True, 10, 5) for i in range(20)]


def test_seeds_give_samples_of_the_same_conversation() -> None:
    with StubEndpoint() as stub:
        model = EndpointLanguageModel(settings(stub.base_url))
        outcomes = model.generate([asking("a")] * 4, SAMPLING, [1, 2, 3, 2**48 - 1])
    assert [outcome.text for outcome in outcomes if isinstance(outcome, Reply)] == [
        f"re: a #{seed}" for seed in (1, 2, 3, 2**31 - 1)
    ]


def test_nothing_asked_is_nothing_answered() -> None:
    outcomes, stub, _ = generate(echo, [])
    assert outcomes == []
    assert stub.asked == []


def test_every_conversation_needs_its_seed() -> None:
    with pytest.raises(ValueError, match="2 conversations need as many seeds, not 1"):
        EndpointLanguageModel(settings()).generate([asking("a")] * 2, SAMPLING, [1])


def test_a_conversation_too_long_for_the_server_fails_alone() -> None:
    def window(asked: Asked) -> Answer:
        return error(400, "maximum context length is 4096 tokens") if len(asked.name) > 10_000 else echo(asked)

    outcomes, stub, _ = generate(window, ["a", "y" * 1_000_000, "", "ünïcödé ☃", "c"])
    assert isinstance(outcomes[1], Failed)
    assert "maximum context length" in outcomes[1].reason
    assert [o.text for o in outcomes if isinstance(o, Reply)] == ["re: a #0", "re:  #2", "re: ünïcödé ☃ #3", "re: c #4"]
    assert len(stub.tries) == 5


def test_it_can_be_closed_and_used_again() -> None:
    with StubEndpoint() as stub:
        model = EndpointLanguageModel(settings(stub.base_url))
        model.close()
        before = model.generate([asking("a")], SAMPLING, [1])
        model.close()
        assert model.generate([asking("a")], SAMPLING, [1]) == before


def test_none_is_lost_and_none_comes_twice_when_a_third_of_the_tries_fail() -> None:
    texts = [f"q{i}" for i in range(150)]
    outcomes, stub, model = generate(
        Failing(0.3, seconds=0.02, retry_after=0.05), texts, concurrency=32, timeout=3, retries=12
    )
    assert outcomes == [Reply(f"re: q{i} #{i}", True, 10, 5) for i in range(150)]
    assert {kind for _, kind in stub.tries} == {"good", "429", "500", "silence", "cut", "garbage"}
    assert sorted(stub.answered) == sorted(f"q{i} #{i}" for i in range(150))
    assert model.spent == Spent(150, 1500, 750)  # good answers that came, each counted


# ---- what is sent ---------------------------------------------------------------------------------------------------


def test_the_request_is_what_the_sampling_says() -> None:
    _, stub, _ = generate(echo)
    assert stub.asked[0].path == "/v1/chat/completions"
    assert "authorization" not in stub.asked[0].headers
    assert stub.asked[0].body == {
        "model": "m",
        "messages": [{"role": "system", "content": "Rewrite."}, {"role": "user", "content": "a"}],
        "temperature": 0.9,
        "top_p": 0.8,
        "max_tokens": 77,
        "seed": 0,
    }


def test_the_seed_can_be_left_out() -> None:
    assert "seed" not in sent(send_seed=False)


@pytest.mark.parametrize(
    ("structured_output", "expected"),
    [
        (
            "json_schema",
            {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}},
        ),
        ("json_object", {"type": "json_object"}),
        ("none", None),
    ],
)
def test_a_schema_is_passed_on_as_the_server_takes_it(structured_output: str, expected: Any) -> None:
    assert sent(schema=SCHEMA, structured_output=structured_output).get("response_format") == expected


def test_the_profile_may_add_fields_and_take_some_away() -> None:
    body = sent(extra_body={"reasoning_effort": "low", "top_p": None, "temperature": 0.1, "provider": {"only": ["x"]}})
    assert body["reasoning_effort"] == "low"
    assert body["provider"] == {"only": ["x"]}
    assert body["temperature"] == 0.1
    assert "top_p" not in body


@pytest.mark.parametrize(("given", "expected"), [(None, 77), (5000, 5000)])
def test_max_completion_tokens_takes_the_place_of_max_tokens(given: int | None, expected: int) -> None:
    body = sent(extra_body={"max_completion_tokens": given})
    assert body["max_completion_tokens"] == expected
    assert "max_tokens" not in body


@pytest.mark.parametrize("name", ["model", "messages", "seed", "n", "stream", "api_key"])
def test_the_platforms_own_fields_are_not_the_profiles(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} cannot be set here; the setting for it is"):
        settings(extra_body={name: 1})


@pytest.mark.parametrize(
    "address", ["server/v1", "http://", "https://me:secret@server/v1", "http://server/v1?key=1", "http://server/#v1"]
)
def test_an_address_is_an_address_and_nothing_else(address: str) -> None:
    with pytest.raises(ValidationError, match="address"):
        settings(address)


# ---- what is read ---------------------------------------------------------------------------------------------------


def test_a_reply_that_ran_out_of_tokens_is_not_whole() -> None:
    outcomes, _, _ = generate(answering(completion("  and then the ", finish="length", usage=(7, 77))))
    assert outcomes == [Reply("and then the", False, 7, 77)]


def test_a_reply_that_was_thought_away_is_empty_and_not_whole() -> None:
    outcomes, _, _ = generate(answering(completion(None, finish="length")))
    assert outcomes == [Reply("", False, 10, 5)]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (completion("", finish="content_filter"), "content filter withheld the reply"),
        (completion(None, refusal="I'm sorry,\nI can't."), "the model refused: I'm sorry, I can't."),
    ],
)
def test_a_reply_that_is_withheld_fails_at_once(body: str, reason: str) -> None:
    outcomes, stub, model = generate(answering(body))
    assert isinstance(outcomes[0], Failed)
    assert reason in outcomes[0].reason
    assert len(stub.tries) == 1
    assert model.spent == Spent(1, 10, 5)


MALFORMED = [
    '{"choices": []}',
    '{"choices": null, "usage": null}',
    '{"error": {"message": "upstream is down", "code": 502}}',
    '{"choices": ["text"]}',
    '{"choices": [{"message": "text"}]}',
    '{"choices": [{"message": {"content": 7}}], "usage": {"prompt_tokens": "many"}}',
    '{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}',
    '{"choices": [{"message": {"content": "\\ud800"}, "finish_reason": "stop"}]}',
    '["choices"]',
    "null",
    "[" * 50_000,
    '{"choices": [{"mess',
]


@pytest.mark.parametrize("body", MALFORMED)
def test_a_malformed_answer_is_asked_for_again(body: str) -> None:
    outcomes, stub, _ = generate(lambda asked: Answer(body) if asked.attempt == 1 else echo(asked))
    assert outcomes == [Reply("re: a #0", True, 10, 5)]
    assert len(stub.tries) == 2


def test_a_row_with_nothing_but_malformed_answers_fails() -> None:
    outcomes, stub, _ = generate(lambda asked: Answer(MALFORMED[2]) if asked.name == "a #0" else echo(asked), "ab")
    assert isinstance(outcomes[0], Failed)
    assert "no good answer in 3 tries" in outcomes[0].reason
    assert "upstream is down" in outcomes[0].reason
    assert outcomes[1] == Reply("re: b #1", True, 10, 5)
    assert len(stub.tries) == 4


# ---- what is spent --------------------------------------------------------------------------------------------------


def test_the_budget_stops_the_run_and_keeps_what_was_paid_for() -> None:
    with StubEndpoint(lambda asked: Answer(completion("x", usage=(60, 40)))) as stub:
        model = EndpointLanguageModel(settings(stub.base_url, budget={"tokens": 1000}))
        outcomes = model.generate([asking(str(i)) for i in range(50)], SAMPLING, range(50))
        replies = [outcome for outcome in outcomes if isinstance(outcome, Reply)]
        skipped = [outcome for outcome in outcomes if isinstance(outcome, Skipped)]
        assert len(replies) == len(stub.tries) == 10
        assert len(skipped) == 40
        assert {outcome.reason for outcome in skipped} == {
            "the budget of one run is spent: 1,000 of 1,000 tokens; raise budget.tokens of the model m in the profile, "
            "or go on with the next run"
        }
        assert model.spent == Spent(10, 600, 400)
        # It is one budget for the life of the object.
        assert all(isinstance(o, Skipped) for o in model.generate([asking("more")], SAMPLING, [1]))
        assert len(stub.tries) == 10
        other = EndpointLanguageModel(model.settings)
        assert isinstance(other.generate([asking("more")], SAMPLING, [1])[0], Reply)


def test_a_budget_in_money_is_kept_over_several_threads() -> None:
    prices = {"price_per_million_prompt_tokens": 1000.0, "price_per_million_completion_tokens": 10_000.0}
    with StubEndpoint(lambda asked: Answer(completion("x", usage=(100, 10)), seconds=0.01)) as stub:
        model = EndpointLanguageModel(settings(stub.base_url, budget={"money": 3.0, **prices}))
        outcomes: list[Outcome[Reply]] = []

        def run(name: str) -> None:
            outcomes.extend(model.generate([asking(f"{name}{i}") for i in range(20)], SAMPLING, range(20)))

        threads = [threading.Thread(target=run, args=(name,)) for name in "xyz"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(outcomes) == 60
    assert 15 <= len(stub.tries) <= 16  # 0.2 each; sums of such may fall short of 3 by a hair
    assert sum(isinstance(outcome, Reply) for outcome in outcomes) == len(stub.tries)
    assert model.spent.money == pytest.approx(0.2 * len(stub.tries))


def test_an_answer_without_a_count_is_counted_with_care() -> None:
    outcomes, _, model = generate(answering(completion("x", usage=None)))
    assert outcomes == [Reply("x", True, 0, 0)]
    assert model.spent.requests == 1
    assert model.spent.new_tokens == SAMPLING.max_new_tokens
    assert 10 < model.spent.prompt_tokens < 100


def test_usage_that_is_nonsense_gives_nothing_back() -> None:
    outcomes, _, model = generate(answering(completion("x", usage=(-(10**9), 5))))
    assert outcomes == [Reply("x", True, 0, 5)]
    assert model.spent == Spent(1, 0, 5)


# ---- who it is ------------------------------------------------------------------------------------------------------


def test_the_identity_names_what_decides_the_replies() -> None:
    base = EndpointLanguageModel(settings()).identity()
    assert base == {
        "backend": "openai",
        "base_url": "http://server/v1",
        "model": "m",
        "revision": None,
        "structured_output": "json_schema",
    }
    same: dict[str, Any] = {"concurrency": 1, "timeout": 5, "retries": 0, "key_variable": "K", "budget": {"tokens": 5}}
    assert EndpointLanguageModel(settings(**same)).identity() == base
    others: list[dict[str, Any]] = [
        {"model": "n"},
        {"revision": "2"},
        {"structured_output": "none"},
        {"extra_body": {"top_k": 5}},
    ]
    identities = [EndpointLanguageModel(settings(**changes)).identity() for changes in others]
    assert len({json.dumps(identity) for identity in [base, *identities]}) == 5
    assert identities[3]["extra_body"] == '{"top_k": 5}'


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with StubEndpoint() as stub:
        pass
    with pytest.raises(Unavailable, match="nobody answers at"):
        EndpointLanguageModel(settings(stub.base_url, retries=0)).generate([asking("a")], SAMPLING, [1])
