"""`vpo serve` as a process, asked by the official OpenAI client; `vpo optimize` for one query, a pipe and a file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from storage.checkpoints import CheckpointManifest
from tests.conftest import Vpo
from tests.tiny_model import save_tiny_model
from vpo_assets.platform import Platform

CHECKPOINT = "dpo-tiny"
FAST = {"VPO_TARGETS__SHAPES__EVALUATION__SAMPLING__MAX_NEW_TOKENS": "12", "NO_PROXY": "127.0.0.1"}
LONGEST_START = 120  # seconds


@pytest.fixture
def tiny(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """A home with one checkpoint, a model of random weights."""
    manifest = CheckpointManifest(id=CHECKPOINT, stage="dpo", target="shapes", base="none", recipe={})
    platform.checkpoints.commit(CHECKPOINT, manifest, lambda folder: {"saved": save_tiny_model(folder).name})
    for name, value in FAST.items():
        monkeypatch.setenv(name, value)
    return platform


@contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`vpo serve` on a free port, and its address."""
    command = [sys.executable, "-m", "vpo_assets.command_line", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        deadline = time.monotonic() + LONGEST_START
        said: list[str] = []
        while not (said and said[-1].startswith("http://")):
            line = process.stderr.readline()
            assert line and time.monotonic() < deadline, "".join(said)
            said.append(line.strip())
        yield process, said[-1]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_the_official_client_is_answered_a_hundred_times_at_once(tiny: Platform) -> None:
    queries = [f"ball {i} heads west" for i in range(100)]

    async def ask_all(address: str) -> list[openai.types.chat.ChatCompletion]:
        async with openai.AsyncOpenAI(base_url=address, api_key="a key", max_retries=0) as client:
            return await asyncio.gather(
                *(
                    client.chat.completions.create(model="vpo", messages=[{"role": "user", "content": query}])
                    for query in queries
                )
            )

    with serving("--checkpoint", CHECKPOINT, VPO_SERVE_KEY="a key") as (process, address):
        completions = asyncio.run(ask_all(address))
        assert all(c.choices[0].message.content and c.model == "vpo" for c in completions)
        assert all(c.usage is not None and c.usage.completion_tokens > 0 for c in completions)
        assert len({c.id for c in completions}) == 100
        assert len({c.choices[0].message.content for c in completions}) > 50  # everybody got an answer of their own

        client = openai.OpenAI(base_url=address, api_key="a key", max_retries=0)
        assert [model.id for model in client.models.list()] == [CHECKPOINT, "vpo"]
        once = client.chat.completions.create(
            model=CHECKPOINT, messages=[{"role": "user", "content": queries[0]}], seed=3, temperature=0.5, max_tokens=5
        )
        again = client.chat.completions.create(
            model=CHECKPOINT, messages=[{"role": "user", "content": queries[0]}], seed=3, temperature=0.5, max_tokens=5
        )
        assert once.choices == again.choices
        assert once.choices[0].finish_reason in ("stop", "length")
        stream = client.chat.completions.create(
            model=CHECKPOINT,
            messages=[{"role": "user", "content": queries[0]}],
            seed=3,
            temperature=0.5,
            max_tokens=5,
            stream=True,
        )
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert streamed == once.choices[0].message.content

        with pytest.raises(openai.BadRequestError, match="nothing to optimize") as empty:
            client.chat.completions.create(model="vpo", messages=[{"role": "user", "content": " "}])
        assert empty.value.code == "empty_query"
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "a"}])
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=address, api_key="another", max_retries=0).models.list()

        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
        assert process.stderr is not None
        assert process.stderr.read() == ""


@pytest.mark.slow
def test_requests_under_way_are_answered_when_the_server_is_told_to_end(tiny: Platform) -> None:
    async def ask(address: str, process: subprocess.Popen[str]) -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0) as client:
            asked = [
                asyncio.create_task(
                    client.chat.completions.create(model="vpo", messages=[{"role": "user", "content": f"ball {i}"}])
                )
                for i in range(8)
            ]
            await asyncio.sleep(0.5)  # they wait for others for five seconds
            process.send_signal(signal.SIGINT)
            return [(await task).choices[0].message.content for task in asked]

    with serving("--checkpoint", CHECKPOINT, VPO_SERVING__WAIT_MS="5000") as (process, address):
        assert all(asyncio.run(ask(address, process)))
        assert process.wait(60) in (0, 130)


@pytest.mark.slow
def test_a_client_that_goes_away_before_its_turn_is_dropped(tiny: Platform) -> None:
    body = json.dumps({"model": "vpo", "messages": [{"role": "user", "content": "a ball"}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    with serving("--checkpoint", CHECKPOINT, VPO_SERVING__WAIT_MS="10000") as (_, address):
        with socket.create_connection(("127.0.0.1", int(address.split(":")[2].split("/")[0]))) as client:
            client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            assert waits_for(address, 1)
        assert waits_for(address, 0)


def waits_for(address: str, waiting: int) -> bool:
    """Whether so many prompts wait within five seconds, half of what the first of a batch waits for others."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if httpx.get(address.replace("/v1", "/health"), trust_env=False).json()["waiting"] == waiting:
            return True
        time.sleep(0.05)
    return False


def test_a_port_in_use_and_an_unknown_checkpoint_are_one_line_each(
    vpo: Vpo, tiny: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        taken = vpo("serve", "--port", port, "--checkpoint", CHECKPOINT)
    assert taken.exit_code == 2
    assert taken.stderr.splitlines() == [
        f"port {port} cannot be used (Address already in use): vpo serve --port N takes another"
    ]
    for arguments, said in (
        (("--checkpoint", "dpo-none"), "there is no checkpoint dpo-none in"),
        (("--checkpoint", "../x"), "cannot name a checkpoint"),
        ((), "target shapes has no evaluation yet"),
        (("--target", "circles"), "there is no target 'circles'"),
    ):
        result = vpo("serve", "--port", "0", *arguments)
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert said in line
    monkeypatch.setenv("VPO_SERVE_KEY", " ")
    keyless = vpo("serve", "--port", "0", "--checkpoint", CHECKPOINT)
    assert keyless.stderr.splitlines() == ["VPO_SERVE_KEY is empty: set a key, or unset it to serve without one"]


# ---- vpo optimize ----------------------------------------------------------------------------------------------------


def test_a_pipe_gives_a_line_for_each_line_and_tells_the_bad_ones_by_number(vpo: Vpo, tiny: Platform) -> None:
    piped = vpo("optimize", "-", "--json", "--checkpoint", CHECKPOINT, stdin="a cube\n\na \U0001f600 disc\n-ar 16:9\n")
    assert piped.exit_code == 2
    rows = [json.loads(line) for line in piped.stdout.splitlines()]
    assert [row["line"] for row in rows] == [1, 2, 3, 4]
    assert [row["query"] for row in rows] == ["a cube", "", "a \U0001f600 disc", "-ar 16:9"]
    assert rows[0]["prompt"] and rows[2]["prompt"]
    assert rows[1]["error"] == {"code": "unusable_query", "reason": "there is nothing to optimize in ''"}
    assert piped.stdout.isascii()
    assert [line for line in piped.stderr.splitlines() if line.startswith("line ")] == [
        "line 2: there is nothing to optimize in ''",
        "line 4: there is nothing to optimize in '-ar 16:9'",
    ]
    plain = vpo("optimize", "-", "--checkpoint", CHECKPOINT, stdin="a cube\n\na disc")
    assert [bool(line) for line in plain.stdout.split("\n")] == [True, False, True, False]


def test_a_file_of_any_kind_is_taken(vpo: Vpo, tiny: Platform, tmp_path: Path) -> None:
    lines = tmp_path / "wishes.jsonl"
    lines.write_text('{"text": "a cube"}\n{"text": 5}\nnot json\n"a disc"\n')
    result = vpo("optimize", "--file", str(lines), "--json", "--checkpoint", CHECKPOINT)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["line"], "prompt" in row) for row in rows] == [(1, True), (2, False), (3, False), (4, True)]
    assert rows[1]["error"]["reason"] == "the query is no text (int)"
    assert "line 3: " in result.stderr
    assert result.exit_code == 2
    table = tmp_path / "wishes.csv"
    table.write_text("wish\na cube\na disc\n")
    named = vpo("optimize", "--file", str(table), "--column", "wish", "--checkpoint", CHECKPOINT)
    assert named.exit_code == 0, named.stderr
    assert len(named.stdout.splitlines()) == 2
    missing = vpo("optimize", "--file", str(tmp_path / "none.txt"), "--checkpoint", CHECKPOINT)
    assert missing.exit_code == 2
    assert missing.stderr.splitlines()[-1].endswith("none.txt: there is no such file")


def test_lines_that_are_no_text_are_told(vpo: Vpo, tiny: Platform) -> None:
    from typer.testing import CliRunner

    from vpo_assets.command_line import app

    result = CliRunner().invoke(
        app,
        ["optimize", "-", "--checkpoint", CHECKPOINT],
        input=b"a cube\n\xff\xfe\n" + b"x" * 1_000_001 + b"\na disc\n",
    )
    assert result.exit_code == 2
    assert [bool(line) for line in result.stdout.split("\n")] == [True, False, False, True, False]
    assert "line 2: the line is no UTF-8 text" in result.stderr
    assert "line 3: the line has more than 1,000,000 bytes" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["a cube", "--file", "x.txt"]])
def test_a_query_or_a_file_is_needed(vpo: Vpo, arguments: list[str]) -> None:
    result = vpo("optimize", *arguments)
    assert result.exit_code == 2
    assert "name a query, `-` for the standard input, or --file FILE" in result.stderr
