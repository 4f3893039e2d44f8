import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from resources import endpoint
from resources.backend_settings import EndpointSettings
from resources.endpoint import Endpoint, Session
from resources.outcome import Failed, Outcome, Skipped, Unavailable
from resources.server_answers import MayPass
from tests.resources.stub_endpoint import FOREVER, Answer, Asked, Behaviour, StubEndpoint, echo, error

KEY = "sk-do-not-print-me"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("STUB_KEY", KEY)
    monkeypatch.setattr(endpoint, "FIRST_BACKOFF", 0.01)


def settings(stub: StubEndpoint, **changes: Any) -> EndpointSettings:
    return EndpointSettings.model_validate(
        {"base_url": stub.base_url, "concurrency": 4, "timeout": 30, "retries": 3, **changes}
    )


async def text(session: Session, item: str) -> str:
    """Ask with the item as message; the reply's text."""
    body = {"messages": [{"role": "user", "content": item}], "seed": 0}
    answer = await session.request("POST", "/chat/completions", json=body)
    return str(answer.json()["choices"][0]["message"]["content"])


async def read_text(session: Session, item: str) -> str:
    """The same, with answers that are no completion asked for again."""
    body = {"messages": [{"role": "user", "content": item}], "seed": 0}

    def read(answer: Any) -> str:
        if not answer.get("choices"):
            raise ValueError("no choices")
        return str(answer["choices"][0]["message"]["content"])

    return await session.request_json("POST", "/chat/completions", read, json=body)


def ask(
    behaviour: Behaviour, items: Sequence[str], work: Callable[[Session, str], Any] = text, **changes: Any
) -> tuple[list[Outcome[str]], StubEndpoint]:
    with StubEndpoint(behaviour) as stub:
        return Endpoint(settings(stub, **changes)).each(items, work), stub


def at_first(answer: Answer, times: int = 1) -> Behaviour:
    """Give this answer to the first tries of everything, then echo."""
    return lambda asked: answer if asked.attempt <= times else echo(asked)


def for_items(answers: dict[str, Answer]) -> Behaviour:
    """Give these answers to some items, always, and echo the others."""
    return lambda asked: answers.get(asked.name.removesuffix(" #0")) or echo(asked)


def test_results_come_in_order_and_no_more_is_under_way_than_allowed() -> None:
    def slower_for_the_first(asked: Asked) -> Answer:
        return Answer(echo(asked).body, seconds=0.2 / int(asked.name.split()[0]))

    items = [str(i) for i in range(1, 25)]
    outcomes, stub = ask(slower_for_the_first, items)
    assert outcomes == [f"re: {item} #0" for item in items]
    assert stub.most_under_way == 4
    assert set(stub.answered.values()) == {1}


def test_nothing_asked_is_nothing_answered() -> None:
    outcomes, stub = ask(echo, [], key_variable="NO_SUCH_KEY")
    assert outcomes == []
    assert stub.asked == []


@pytest.mark.parametrize(
    "trouble",
    [
        *(error(status, "busy") for status in (408, 409, 429, 500, 503)),
        Answer('{"choices": [{"message"', cut=True),
        Answer("<html>welcome"),
        Answer('{"choices": []}'),
        Answer(b"\xff\xfe\x00"),
        Answer("{}", headers={"Content-Encoding": "gzip"}),
    ],
    ids=lambda answer: f"{answer.status} {answer.body!r:.20} {answer.cut}",
)
def test_what_may_pass_is_asked_again(trouble: Answer) -> None:
    outcomes, stub = ask(at_first(trouble, times=2), ["a"], read_text)
    assert outcomes == ["re: a #0"]
    assert len(stub.tries) == 3


def test_a_server_that_says_nothing_is_asked_again() -> None:
    outcomes, stub = ask(at_first(Answer(seconds=FOREVER)), ["a"], timeout=1)
    assert outcomes == ["re: a #0"]
    assert len(stub.tries) >= 2


def test_the_timeout_is_for_the_whole_answer() -> None:
    outcomes, _ = ask(for_items({"a": Answer("x" * 1000, trickle=0.1)}), ["a"], timeout=0.5, retries=0)
    assert outcomes == [Failed("no good answer in 1 tries, the last one: no answer within 0.5 s")]


def test_a_retry_after_is_waited_for() -> None:
    started = time.monotonic()
    outcomes, _ = ask(at_first(error(429, "slow down", Retry_After="0.5")), ["a"])
    assert outcomes == ["re: a #0"]
    assert time.monotonic() - started >= 0.5


def test_a_mad_retry_after_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "LONGEST_RETRY_AFTER", 0.05)
    outcomes, _ = ask(at_first(error(503, "come back next year", Retry_After="31536000")), ["a"])
    assert outcomes == ["re: a #0"]


def test_the_waits_grow_and_are_drawn_by_chance() -> None:
    waits = [[endpoint._backoff(steps, None) for _ in range(200)] for steps in (0, 3, 39)]
    assert 0.5 * 0.01 < max(waits[0]) <= 0.01
    assert 0.5 * 0.27 < max(waits[1]) <= 0.27
    assert 0.5 * endpoint.LONGEST_BACKOFF < max(waits[2]) <= endpoint.LONGEST_BACKOFF
    assert min(waits[2]) < 0.2 * endpoint.LONGEST_BACKOFF


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often each wait had grown, in their order; nobody really waits."""
    noted: list[int] = []

    def at_once(steps: int, retry_after: float | None) -> float:
        noted.append(steps)
        return 0.001

    monkeypatch.setattr(endpoint, "_backoff", at_once)
    return noted


def test_the_waits_grow_while_nobody_is_answered(steps: list[int]) -> None:
    ask(at_first(error(500, "down"), times=5), ["a"], retries=5)
    assert steps == [0, 1, 2, 3, 4]


def test_the_waits_grow_while_it_is_too_much(steps: list[int]) -> None:
    items = ["a", *(f"good {i}" for i in range(60))]
    ask(for_items({"a": replace(error(429, "slow down"), seconds=0.1)}), items, retries=5, concurrency=2)
    assert steps == [0, 1, 2, 3, 4]


def test_the_waits_do_not_grow_while_others_are_answered(steps: list[int]) -> None:
    # With one place, another item is asked whenever `a` waits.
    items = ["a", *(f"good {i}" for i in range(10))]
    outcomes, _ = ask(for_items({"a": error(500, "bad luck")}), items, retries=4, concurrency=1)
    assert isinstance(outcomes[0], Failed)
    assert steps == [0, 0, 0, 0]


def test_a_row_whose_tries_are_used_up_fails_and_the_others_go_on() -> None:
    outcomes, stub = ask(for_items({"b": error(500, "b is poison")}), ["a", "b", "c"])
    assert [outcomes[0], outcomes[2]] == ["re: a #0", "re: c #0"]
    assert isinstance(outcomes[1], Failed)
    assert outcomes[1].reason.startswith("no good answer in 4 tries, the last one: HTTP 500: ")
    assert "b is poison" in outcomes[1].reason
    assert [name for name, _ in stub.tries].count("b #0") == 4


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_row_fails_at_once_and_the_others_go_on(status: int) -> None:
    outcomes, stub = ask(for_items({"a": error(status, "too long")}), ["a", "b", "c"])
    assert isinstance(outcomes[0], Failed)
    assert "too long" in outcomes[0].reason
    assert outcomes[1:] == ["re: b #0", "re: c #0"]
    assert len(stub.tries) == 3


def test_a_value_error_of_the_work_fails_its_row() -> None:
    async def picky(session: Session, item: str) -> str:
        if item == "b":
            raise ValueError("no b, please")
        return await text(session, item)

    outcomes, _ = ask(echo, ["a", "b"], picky)
    assert outcomes == ["re: a #0", Failed("no b, please")]


def test_another_error_of_the_work_is_raised_as_it_is() -> None:
    async def broken(session: Session, item: str) -> str:
        raise KeyError(item)

    with pytest.raises(KeyError, match="a"):
        ask(echo, ["a", "b"], broken)


def test_what_cannot_be_sent_fails_its_row() -> None:
    outcomes, _ = ask(echo, ["a", "half a pair \ud800"])
    assert outcomes[0] == "re: a #0"
    assert isinstance(outcomes[1], Failed)
    assert "cannot be written as JSON" in outcomes[1].reason


# ---- keys -----------------------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_never_shown() -> None:
    def forgetful(asked: Asked) -> Answer:
        return error(400, f"I saw {asked.headers['authorization']}\x1b[2J" + "." * 500)

    outcomes, stub = ask(forgetful, ["a"], key_variable="STUB_KEY")
    assert stub.asked[0].headers["authorization"] == f"Bearer {KEY}"
    assert isinstance(outcomes[0], Failed)
    assert "I saw Bearer ***" in outcomes[0].reason
    assert KEY not in outcomes[0].reason
    assert outcomes[0].reason.isprintable()
    assert len(outcomes[0].reason) < 350


@pytest.mark.parametrize("value", [None, "", "  \n"])
def test_without_the_key_nothing_is_asked(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv("STUB_KEY")
    else:
        monkeypatch.setenv("STUB_KEY", value)
    with StubEndpoint() as stub:
        with pytest.raises(Unavailable, match="environment variable STUB_KEY, which is not set"):
            Endpoint(settings(stub, key_variable="STUB_KEY")).each(["a"], text)
        assert stub.connections == 0
        assert stub.asked == []


@pytest.mark.parametrize("value", [f"{KEY}\nX-Evil: 1", f"{KEY}é"])
def test_a_key_that_is_none_is_not_shown_either(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_KEY", value)
    with (
        StubEndpoint() as stub,
        pytest.raises(Unavailable, match="STUB_KEY holds characters that no key has") as raised,
    ):
        Endpoint(settings(stub, key_variable="STUB_KEY")).each(["a"], text)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_stops_everything_at_once(status: int) -> None:
    with StubEndpoint(lambda _: error(status, f"wrong key {KEY}")) as stub:
        with pytest.raises(Unavailable, match="check the key in the environment variable STUB_KEY") as raised:
            Endpoint(settings(stub, key_variable="STUB_KEY")).each([str(i) for i in range(100)], text)
        assert len(stub.tries) <= 4
    assert KEY not in str(raised.value)


def test_the_key_is_not_sent_on_to_where_a_server_points() -> None:
    with StubEndpoint() as elsewhere:
        moved = Answer(status=307, headers={"Location": f"{elsewhere.base_url}/chat/completions"})
        with pytest.raises(Unavailable, match="sends us on to"):
            ask(lambda _: moved, ["a"], key_variable="STUB_KEY")
        assert elsewhere.asked == []


# ---- when nothing can go on -----------------------------------------------------------------------------------------


def test_what_was_done_is_kept_when_the_server_shuts_us_out() -> None:
    items = [str(i) for i in range(100)]
    outcomes, stub = ask(for_items({"10": error(401, "key revoked")}), items)
    done, skipped = [o for o in outcomes if isinstance(o, str)], [o for o in outcomes if isinstance(o, Skipped)]
    assert outcomes[:7] == [f"re: {item} #0" for item in items[:7]]
    assert len(done) + len(skipped) == 100
    assert isinstance(outcomes[10], Skipped)
    assert "key revoked" in outcomes[10].reason
    assert isinstance(outcomes[-1], Skipped)
    assert len(stub.tries) <= 11 + 4


def test_nobody_there_is_said_in_one_line() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        server = EndpointSettings(base_url=address, retries=2, concurrency=3)
        with pytest.raises(Unavailable) as raised:
            Endpoint(server).each([str(i) for i in range(50)], text)
    assert f"nobody answers at {address}" in str(raised.value)
    assert "check that the server runs" in str(raised.value)
    assert str(raised.value).isprintable()


def test_a_server_that_dies_keeps_what_was_done() -> None:
    with StubEndpoint() as stub:
        patient = Endpoint(settings(stub, retries=1))
        assert patient.each(["a"], text) == ["re: a #0"]
    outcomes = patient.each(["b", "c"], text)
    assert all(isinstance(outcome, Skipped) and "nobody answers" in outcome.reason for outcome in outcomes)


def test_an_unknown_model_stops_everything() -> None:
    with pytest.raises(Unavailable, match=r"the model m does not exist.*check base_url and model"):
        ask(lambda _: error(404, "the model m does not exist"), ["a"])


def test_a_thing_that_is_not_there_fails_its_row() -> None:
    async def fetch(session: Session, item: str) -> str:
        return (await session.request("GET", f"/videos/{item}")).text

    outcomes, _ = ask(lambda asked: error(404, "no such job") if asked.path.endswith("b") else echo(asked), "ab", fetch)
    assert isinstance(outcomes[0], str)
    assert isinstance(outcomes[1], Failed)


def test_many_things_that_are_not_there_are_no_reason_to_stop() -> None:
    async def fetch(session: Session, item: str) -> str:
        return (await session.request("GET", f"/videos/{item}")).text

    outcomes, _ = ask(lambda _: error(404, "no such job"), [str(i) for i in range(20)], fetch)
    assert all(isinstance(outcome, Failed) for outcome in outcomes)


def test_a_broken_server_is_not_asked_for_every_row() -> None:
    items = [str(i) for i in range(100)]
    outcomes, stub = ask(lambda _: error(500, "out of order"), items, retries=1, concurrency=1)
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    assert len(failed) == 7
    assert isinstance(outcomes[-1], Skipped)
    assert "8 requests in a row came to nothing" in outcomes[-1].reason
    assert "out of order" in outcomes[-1].reason
    assert len(stub.tries) <= 20


def test_an_item_that_lent_its_place_ends_when_the_server_stops_us() -> None:
    def withdrawn(asked: Asked) -> Answer:
        if asked.name.startswith("a"):
            return error(500, "once")
        return Answer(error(401, "key withdrawn").body, 401, seconds=0.5, kind="401")

    with pytest.raises(Unavailable, match="key withdrawn"):
        ask(withdrawn, ["a", "b", "c"], concurrency=1)


def test_good_answers_in_between_show_that_it_is_the_rows() -> None:
    items = [f"{kind} {i}" for i in range(12) for kind in ("bad", "good")]
    outcomes, _ = ask(
        lambda a: error(500, "x") if a.name.startswith("bad") else echo(a), items, retries=0, concurrency=1
    )
    assert [isinstance(outcome, Failed) for outcome in outcomes] == [True, False] * 12


def test_a_server_that_others_hear_from_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    original = endpoint._Asking._response

    async def unreachable_for_a(self: Any, client: Any, method: str, path: str, *rest: Any) -> Any:
        if path == "/a":
            await asyncio.sleep(0.05)
            raise MayPass("no connection", connected=False)
        return await original(self, client, method, path, *rest)

    async def fetch(session: Session, item: str) -> str:
        return str((await session.request("GET", f"/{item}")).status_code)

    monkeypatch.setattr(endpoint._Asking, "_response", unreachable_for_a)
    outcomes, _ = ask(echo, "abc", fetch)
    assert isinstance(outcomes[0], Failed)
    assert outcomes[1:] == ["200", "200"]


def test_nobody_waits_for_a_server_that_shuts_us_out() -> None:
    busy, wrong = error(429, "wait", Retry_After="60"), Answer(error(401, "wrong key").body, 401, seconds=0.2)
    started = time.monotonic()
    with pytest.raises(Unavailable, match="wrong key"):
        ask(for_items({"a": busy, "b": wrong}), ["a", "b"])
    assert time.monotonic() - started < 30


def test_a_server_that_refuses_everything_is_not_asked_for_every_row() -> None:
    outcomes, stub = ask(lambda _: error(400, "response_format is not supported"), [str(i) for i in range(100)])
    assert isinstance(outcomes[-1], Skipped)
    assert "response_format is not supported" in outcomes[-1].reason
    assert len(stub.tries) <= 12


def test_many_refused_rows_are_no_reason_to_stop_once_one_was_answered() -> None:
    items = ["good", *(f"bad {i}" for i in range(30)), "good too"]
    outcomes, _ = ask(lambda a: error(400, "too long") if a.name.startswith("bad") else echo(a), items, concurrency=1)
    assert sum(isinstance(outcome, Failed) for outcome in outcomes) == 30
    assert outcomes[-1] == "re: good too #0"


# ---- places ---------------------------------------------------------------------------------------------------------


def test_while_one_waits_for_its_next_try_another_takes_its_place() -> None:
    def busy_for_a(asked: Asked) -> Answer:
        return at_first(error(429, "wait", Retry_After="0.5"))(asked) if asked.name == "a #0" else echo(asked)

    outcomes, stub = ask(busy_for_a, ["a", "b", "c"], concurrency=1)
    assert outcomes == ["re: a #0", "re: b #0", "re: c #0"]
    assert [name for name, _ in stub.tries] == ["a #0", "b #0", "c #0", "a #0"]
    assert stub.most_under_way == 1


def test_items_that_wait_do_not_pile_up() -> None:
    begun: set[str] = set()
    most = 0

    async def counting(session: Session, item: str) -> str:
        nonlocal most
        begun.add(item)
        most = max(most, len(begun))
        try:
            return await text(session, item)
        finally:
            begun.discard(item)

    outcomes, stub = ask(at_first(error(429, "wait", Retry_After="0.2")), [str(i) for i in range(40)], counting)
    assert outcomes == [f"re: {i} #0" for i in range(40)]
    assert most == 8
    assert stub.most_under_way <= 4


def test_requests_of_one_item_at_once_do_not_exceed_what_is_allowed() -> None:
    async def several(session: Session, item: str) -> str:
        return " ".join(await asyncio.gather(*(text(session, f"{item}{i}") for i in range(5))))

    def slow_and_bad_at_first(asked: Asked) -> Answer:
        return replace(at_first(error(500, "x"))(asked), seconds=0.05)

    outcomes, stub = ask(slow_and_bad_at_first, ["a", "b"], several)
    assert outcomes == [" ".join(f"re: {item}{i} #0" for i in range(5)) for item in "ab"]
    assert stub.most_under_way == 4


# ---- threads, loops and interrupts ----------------------------------------------------------------------------------


def test_it_works_where_a_loop_is_running() -> None:
    async def notebook() -> list[Outcome[str]]:
        return ask(echo, ["a", "b"])[0]

    assert asyncio.run(notebook()) == ["re: a #0", "re: b #0"]


def test_it_works_from_several_threads() -> None:
    found: dict[str, list[Outcome[str]]] = {}
    with StubEndpoint() as stub:
        shared = Endpoint(settings(stub))

        def run(name: str) -> None:
            found[name] = shared.each([f"{name}{i}" for i in range(20)], text)

        threads = [threading.Thread(target=run, args=(name,)) for name in "xyz"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {name: [f"re: {name}{i} #0" for i in range(20)] for name in "xyz"}


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell starts what it runs in the background with interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_ends_it_and_closes_the_connections(interruptible: None) -> None:
    with StubEndpoint(lambda _: Answer(seconds=FOREVER)) as stub:

        def interrupt() -> None:
            while stub.under_way < 4:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            Endpoint(settings(stub, timeout=600)).each([str(i) for i in range(100)], text)
        assert time.monotonic() - started < 20
        assert not any(thread.name == "endpoint" for thread in threading.enumerate())
        deadline = time.monotonic() + 10
        while stub.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stub.connections == 0
        assert len(stub.tries) == 4


def test_nothing_is_held_between_calls() -> None:
    with StubEndpoint() as stub:
        patient = Endpoint(settings(stub))
        patient.each(["a"] * 8, text)
        deadline = time.monotonic() + 10
        while stub.connections and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stub.connections == 0
        assert not any(thread.name == "endpoint" for thread in threading.enumerate())
        assert patient.each(["b"], text) == ["re: b #0"]
