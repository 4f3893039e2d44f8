"""What clients get over HTTP: answers, errors in OpenAI's shape, and one call of the model for many of them."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from httpx import Response
from starlette.testclient import TestClient

from ml import templates
from resources.language_model import Reply, Sampling
from resources.optimizer_settings import OptimizerSettings, ServingSettings
from resources.outcome import Failed, Unavailable
from resources.prompt_optimizer import PromptOptimizer
from resources.serving.application import LARGEST_BODY, Application
from tests.resources.scripted_model import GOOD, UNSAFE, Says, ScriptedModel

ADDRESS = "http://127.0.0.1:8700"
PATH = "/v1/chat/completions"
Served = tuple[TestClient, ScriptedModel, Application]


@contextmanager
def served(says: Says | None = None, *, key: str | None = None, **changes: Any) -> Iterator[Served]:
    model = ScriptedModel(says) if says else ScriptedModel()
    settings = OptimizerSettings(name="dpo-1", template=templates.load("optimize").source)
    application = Application(
        PromptOptimizer(model, settings), ServingSettings.model_validate({"wait_ms": 5, **changes}), key
    )
    with TestClient(application.asgi, base_url=ADDRESS) as client:
        yield client, model, application
    assert model.closed == 1


@pytest.fixture
def client() -> Iterator[TestClient]:
    with served() as (client, _, _):
        yield client


def body(query: str | list[Any] = "a red ball", **more: Any) -> dict[str, Any]:
    return {"model": "dpo-1", "messages": [{"role": "user", "content": query}], **more}


def error(response: Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    found = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert len(found["message"].splitlines()) == 1
    return dict(found)


def test_the_query_goes_into_the_template_and_the_prompt_comes_back() -> None:
    with served() as (client, model, _):
        messages = [
            {"role": "system", "content": "You are helpful."},
            {"role": "assistant", "content": None, "tool_calls": []},
            {"role": "user", "content": [{"type": "text", "text": "a red ball"}]},
        ]
        answer = client.post(PATH, json=body() | {"messages": messages}).json()
        assert answer["object"] == "chat.completion"
        assert answer["model"] == "dpo-1"
        assert answer["choices"] == [
            {
                "index": 0,
                "message": {"role": "assistant", "content": GOOD, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ]
        assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        ((_, sampling, _),) = model.calls[-1]
        assert sampling == Sampling(0.7, 1.0, 96)  # the optimizer's own


def test_what_the_request_says_of_sampling_counts() -> None:
    with served() as (client, model, _):
        asked = body(temperature=0.1, top_p=0.5, max_tokens=9, seed=4, n=3, user="me", store=False, stop=None)
        answer = client.post(PATH, json=asked).json()
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
        assert answer["usage"]["completion_tokens"] == 15
        assert {sampling for _, sampling, _ in model.calls[-1]} == {Sampling(0.1, 0.5, 9)}
        seeds = [seed for _, _, seed in model.calls[-1]]
        assert len(set(seeds)) == 3
        client.post(PATH, json=asked)
        assert [seed for _, _, seed in model.calls[-1]] == seeds
        client.post(PATH, json=body(max_completion_tokens=11, model="vpo"))
        assert model.calls[-1][0][1].max_new_tokens == 11


def test_a_stream_is_chunks_that_end_with_done(client: TestClient) -> None:
    options = {"include_usage": True}
    with client.stream("POST", PATH, json=body(stream=True, n=2, stream_options=options)) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    text = ["", ""]
    ends = []
    for chunk in chunks[:-1]:
        (choice,) = chunk["choices"]
        text[choice["index"]] += choice["delta"].get("content", "")
        ends += [choice["finish_reason"]] if choice["finish_reason"] else []
    assert text == [GOOD, GOOD]
    assert ends == ["stop", "stop"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 24


def test_the_model_is_listed_under_its_names(client: TestClient) -> None:
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["dpo-1", "vpo"]
    assert client.get("/v1/models/dpo-1").json()["owned_by"] == "vpo"
    assert error(client.get("/v1/models/gpt-4"), 404)["code"] == "model_not_found"
    assert client.get("/health").json() == {"status": "ok", "model": "dpo-1", "waiting": 0}


@pytest.mark.parametrize(
    ("asked", "status", "code", "parameter"),
    [
        (body(""), 400, "empty_query", "messages.0.content"),
        (body("  -ar 16:9 "), 400, "empty_query", "messages.0.content"),
        (body([]), 400, "empty_query", "messages.0.content"),
        (body("x" * 4001), 400, "string_above_max_length", "messages.0.content"),
        (body() | {"messages": []}, 400, "invalid_value", "messages"),
        (body() | {"messages": [{"role": "assistant", "content": "a"}]}, 400, "invalid_value", "messages.0.role"),
        (body() | {"messages": [{"role": "boss", "content": "a"}]}, 400, "invalid_value", "messages.0.role"),
        (body() | {"messages": "a"}, 400, "invalid_value", "messages"),
        (
            body([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]),
            400,
            "invalid_value",
            "messages.0.content.0.type",
        ),
        ({"model": "dpo-1"}, 400, "invalid_value", "messages"),
        ({"messages": body()["messages"]}, 400, "invalid_value", "model"),
        (body(model="gpt-4"), 404, "model_not_found", "model"),
        (body(temperature=3), 400, "invalid_value", "temperature"),
        (body(temperature=float("nan")), 400, "invalid_value", "temperature"),
        (body(top_p=0), 400, "invalid_value", "top_p"),
        (body(max_tokens=0), 400, "invalid_value", "max_tokens"),
        (body(max_tokens=100_000), 400, "invalid_value", "max_tokens"),
        (body(max_completion_tokens=100_000), 400, "invalid_value", "max_completion_tokens"),
        (body(n=1000), 400, "invalid_value", "n"),
        (body(n="2"), 400, "invalid_value", "n"),
        (body(seed=1 << 70), 400, "invalid_value", "seed"),
        (body(stop=["x"]), 400, "unsupported_parameter", "stop"),
        (body(tools=[{"type": "function"}]), 400, "unsupported_parameter", "tools"),
        (body(logprobs=True), 400, "unsupported_parameter", "logprobs"),
        (body(frequency_penalty=0.5), 400, "unsupported_parameter", "frequency_penalty"),
        (body(response_format={"type": "json_object"}), 400, "unsupported_parameter", "response_format"),
        (body(**{"\ud800": 1}), 400, "unsupported_parameter", "\\ud800"),
    ],
)
def test_a_request_that_cannot_be_answered_says_what_is_wrong(
    client: TestClient, asked: dict[str, Any], status: int, code: str, parameter: str
) -> None:
    response = client.post(PATH, content=json.dumps(asked), headers={"Content-Type": "application/json"})
    found = error(response, status)
    assert (found["code"], found["param"]) == (code, parameter)
    assert found["type"] == "invalid_request_error"


def test_what_asks_for_nothing_is_no_unsupported_parameter(client: TestClient) -> None:
    asked = body(frequency_penalty=0, presence_penalty=0.0, logprobs=False, tools=[], response_format={"type": "text"})
    assert client.post(PATH, json=asked).status_code == 200


def test_other_bodies_paths_and_hosts_are_refused(client: TestClient) -> None:
    def post(content: str | bytes, kind: str = "application/json", **headers: str) -> Response:
        return client.post(PATH, content=content, headers={"Content-Type": kind, **headers})

    assert error(post("{"), 400)["code"] == "invalid_json"
    assert error(post(b"\xff"), 400)["code"] == "invalid_json"
    assert error(post("[" * 100_000), 400)["code"] == "invalid_json"
    assert error(post("[]"), 400)["code"] == "invalid_json"
    assert error(post(" " * (LARGEST_BODY + 1)), 413)["code"] == "request_too_large"
    assert error(post(json.dumps(body()), "text/plain"), 415)["code"] == "unsupported_media_type"
    assert error(post(json.dumps(body()), host="evil.example"), 403)["code"] == "wrong_host"
    assert error(client.get("/health", headers={"host": "evil.example:8700"}), 403)["code"] == "wrong_host"
    assert error(client.get(PATH), 405)["code"] == "method_not_allowed"
    assert error(client.post("/v1/completions", json={}), 404)["code"] == "unknown_url"


def test_the_key_is_asked_for_where_there_is_one() -> None:
    with served(key="schlüssel") as (client, _, _):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic schlüssel".encode()}):
            assert error(client.post(PATH, json=body(), headers=headers), 401)["code"] == "invalid_api_key"
            assert client.get("/v1/models", headers=headers).status_code == 401
        right = {"Authorization": "Bearer schlüssel".encode()}
        assert client.post(PATH, json=body(), headers=right).status_code == 200
        assert client.get("/health").status_code == 200


def test_what_the_judge_refuses_is_told_with_its_reason() -> None:
    with served(lambda query, before: UNSAFE) as (client, model, _):
        for stream in (False, True):
            found = error(client.post(PATH, json=body(stream=stream)), 422)
            assert found["code"] == "content_filter"
            assert "refused as unsafe: keeps unsafe content (blood, naked)" in found["message"]
        assert len(model.calls) == 8


def test_a_refused_choice_stands_beside_those_that_passed() -> None:
    with served(lambda query, before: GOOD if before == 0 else UNSAFE) as (client, _, _):
        choices = client.post(PATH, json=body(n=2)).json()["choices"]
        assert [choice["finish_reason"] for choice in choices] == ["stop", "content_filter"]
        assert choices[1]["message"]["content"] is None
        assert "unsafe" in choices[1]["message"]["refusal"]


def test_what_the_model_says_of_itself_gets_its_status() -> None:
    def says(query: str, before: int) -> Any:
        if query == "long":
            return Failed("a prompt of 999 tokens does not fit")
        if query == "cut":
            return Reply(GOOD, whole=False)
        if query == "gone":
            raise Unavailable("the engine died")
        raise KeyError("a bug with a /secret/path in it")

    with served(says) as (client, _, _):
        assert error(client.post(PATH, json=body("long")), 400)["code"] == "unusable_query"
        assert client.post(PATH, json=body("cut")).json()["choices"][0]["finish_reason"] == "length"
        gone = error(client.post(PATH, json=body("gone")), 503)
        assert (gone["code"], gone["message"], gone["type"]) == ("model_unavailable", "the engine died", "server_error")
        bug = error(client.post(PATH, json=body("bug")), 500)
        assert bug["code"] == "internal_error"
        assert "secret" not in bug["message"]


# ---- many at once ----------------------------------------------------------------------------------------------------


class Gate:
    """A model that answers when it is let."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def says(self, query: str, before: int) -> str:
        self.entered.set()
        assert self.open.wait(20)
        if query.startswith("bug"):
            raise KeyError(query)
        return f"{GOOD} {query}."


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_requests_that_wait_together_are_answered_together() -> None:
    gate = Gate()
    with served(gate.says, batch_size=8) as (client, model, application), ThreadPoolExecutor(30) as pool:
        first = pool.submit(client.post, PATH, json=body("first"))
        assert gate.entered.wait(10)
        others = [pool.submit(client.post, PATH, json=body(f"ball {i}")) for i in range(20)]
        until(lambda: application.batcher.waiting == 20)
        gate.open.set()
        contents = [f.result().json()["choices"][0]["message"]["content"] for f in (first, *others)]
        assert contents == [f"{GOOD} first.", *(f"{GOOD} ball {i}." for i in range(20))]
        assert [len(call) for call in model.calls] == [1, 8, 8, 4]


def test_when_too_many_wait_the_next_is_told_to_come_back() -> None:
    gate = Gate()
    with served(gate.says, queue=3) as (client, _, application), ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(client.post, PATH, json=body("first"))]
        assert gate.entered.wait(10)
        waiting += [pool.submit(client.post, PATH, json=body(f"ball {i}")) for i in range(3)]
        until(lambda: application.batcher.waiting == 3)
        full = client.post(PATH, json=body("one more"))
        assert error(full, 429)["type"] == "rate_limit_error"
        assert full.headers["retry-after"] == "1"
        gate.open.set()
        assert [f.result().status_code for f in waiting] == [200] * 4


def test_one_request_that_breaks_the_call_takes_no_other_with_it() -> None:
    gate = Gate()
    with served(gate.says) as (client, _, application), ThreadPoolExecutor(8) as pool:
        first = pool.submit(client.post, PATH, json=body("first"))
        assert gate.entered.wait(10)
        queries = ["ball 1", "bug", "ball 2"]
        others = [pool.submit(client.post, PATH, json=body(query)) for query in queries]
        until(lambda: application.batcher.waiting == 3)
        gate.open.set()
        assert first.result().status_code == 200
        assert [f.result().status_code for f in others] == [200, 500, 200]


def test_at_the_end_what_waits_is_answered() -> None:
    gate = Gate()
    with served(gate.says) as (client, _, application), ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(client.post, PATH, json=body("first"))]
        until(gate.entered.is_set)
        asked += [pool.submit(client.post, PATH, json=body(f"ball {i}")) for i in range(2)]
        until(lambda: application.batcher.waiting == 2)
        application.batcher.end()
        refused = client.post(PATH, json=body("late"))
        gate.open.set()
        assert error(refused, 503)["code"] == "shutting_down"
        assert [f.result().status_code for f in asked] == [200] * 3
