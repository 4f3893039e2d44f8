"""An OpenAI-compatible server to test against: real HTTP on 127.0.0.1, and failures by plan.

Here: the server, in a thread (`with StubEndpoint(...)`) or in a process of its own
(`python -m tests.resources.stub_endpoint --help`), and what it can be made to do. Not here: what is tested with it.
"""

import argparse
import asyncio
import contextlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

FAILURES = ("429", "500", "silence", "cut", "garbage")
FOREVER = 3600.0  # seconds; longer than any client waits


@dataclass(frozen=True)
class Asked:
    """One request. `name` is its conversation's last message and its seed; `attempt` counts it, from 1."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any
    name: str
    attempt: int


@dataclass(frozen=True)
class Answer:
    """What the server does with one request: waits, then answers, or breaks off in the middle of the answer.

    `trickle`: seconds between two bytes.
    """

    body: str | bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    trickle: float = 0.0
    cut: bool = False
    kind: str = "good"


Behaviour = Callable[[Asked], Answer]


def completion(
    text: str | None, *, finish: str = "stop", usage: tuple[int, int] | None = (10, 5), **message: Any
) -> str:
    """The body of a chat completion."""
    body: dict[str, Any] = {
        "object": "chat.completion",
        "choices": [
            {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
        ],
    }
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return json.dumps(body)


def error(status: int, message: str, code: str | None = None, **headers: str) -> Answer:
    """An error as OpenAI's servers word it; headers by their names with _ for -."""
    body = json.dumps({"error": {"message": message, "type": "stub_error", "code": code}})
    return Answer(body, status, {name.replace("_", "-"): value for name, value in headers.items()}, kind=str(status))


def echo(asked: Asked) -> Answer:
    """Answer with what was asked."""
    return Answer(completion(f"re: {asked.name}"))


@dataclass(frozen=True)
class Failing:
    """Fails a share of the tries in five ways in turn of chance, and answers the others like `echo`.

    What becomes of a try is decided by its name, attempt and `seed` alone, so a plan can be run again.
    """

    share: float
    seconds: float
    retry_after: float
    seed: int = 0

    def __call__(self, asked: Asked) -> Answer:
        chance = random.Random(f"{self.seed} {asked.name} {asked.attempt}")
        if chance.random() >= self.share:
            return Answer(completion(f"re: {asked.name}"), seconds=self.seconds)
        return self.failure(chance.choice(FAILURES))

    def failure(self, kind: str) -> Answer:
        """One of FAILURES."""
        if kind == "429":
            return error(429, "slow down", Retry_After=f"{self.retry_after:g}")
        if kind == "500":
            return error(500, "something broke")
        if kind == "silence":
            return Answer(seconds=FOREVER, kind=kind)
        if kind == "cut":
            return Answer(completion("never read"), seconds=self.seconds / 2, cut=True, kind=kind)
        return Answer('<html>no, this is {"choices": []', seconds=self.seconds, kind="garbage")


class StubEndpoint:
    """The server. Counts what it was asked and what it answered; all counts are for reading from other threads."""

    def __init__(self, behaviour: Behaviour = echo, port: int = 0) -> None:
        self.behaviour = behaviour
        self.asked: list[Asked] = []
        self.tries: list[tuple[str, str]] = []  # name and kind of every try
        self.answered: Counter[str] = Counter()  # good answers, written to their end, by name
        self.under_way = 0
        self.most_under_way = 0
        self.connections = 0
        self._attempts: Counter[str] = Counter()
        self._port = port
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True)

    @property
    def base_url(self) -> str:
        """Its address, up to and with /v1."""
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> "StubEndpoint":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(10)

    async def serve(self) -> None:
        """Answer until closed."""
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        talks: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            talk = asyncio.create_task(self._talk(reader, writer))
            talks.add(talk)
            talk.add_done_callback(talks.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", self._port, limit=1 << 24, backlog=512)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._closing.wait()
        server.close()
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: request after request, until either side ends it."""
        self.connections += 1
        try:
            while (asked := await self._request(reader)) and await self._answer(asked, reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.connections -= 1
            writer.transport.abort()

    async def _request(self, reader: asyncio.StreamReader) -> Asked | None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.strip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.strip().lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
        content = await reader.readexactly(int(headers.get("content-length", "0")))
        body = json.loads(content) if content else None
        name = _name(body)
        self._attempts[name] += 1
        return Asked(method, path, headers, body, name, self._attempts[name])

    async def _answer(self, asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False if the connection is not to be used again."""
        if asked.path == "/v1/counts":
            return await self._write(writer, Answer(json.dumps({"tries": self.tries, "answered": self.answered})))
        answer = self.behaviour(asked)
        self.asked.append(asked)
        self.tries.append((asked.name, answer.kind))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if not await _still_there(reader, answer.seconds):
                return False
        finally:
            self.under_way -= 1
        alive = await self._write(writer, answer)
        if answer.kind == "good" and answer.status < 300 and alive:
            self.answered[asked.name] += 1
        return alive

    async def _write(self, writer: asyncio.StreamWriter, answer: Answer) -> bool:
        content = answer.body.encode() if isinstance(answer.body, str) else answer.body
        headers = {"Content-Type": "application/json", **answer.headers, "Content-Length": str(len(content))}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        written = f"HTTP/1.1 {answer.status} Stub\r\n{head}\r\n".encode() + content
        written = written[: -len(content) // 2] if answer.cut else written
        for piece in (written[i : i + 1] for i in range(len(written))) if answer.trickle else (written,):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(answer.trickle)
        return not answer.cut


async def _still_there(reader: asyncio.StreamReader, seconds: float) -> bool:
    """Wait; False as soon as the client hangs up."""
    if seconds <= 0:
        return True
    hung_up = asyncio.ensure_future(reader.read(1))  # a client says nothing before it has its answer
    done, _ = await asyncio.wait([hung_up], timeout=seconds)
    hung_up.cancel()
    with contextlib.suppress(asyncio.CancelledError, ConnectionError):
        await hung_up
    return not done


def _name(body: Any) -> str:
    messages = body.get("messages") if isinstance(body, dict) else None
    return f"{messages[-1]['content']} #{body.get('seed')}" if messages else ""


def main() -> None:
    """Serve in this process until it is ended; the address is printed first."""
    parser = argparse.ArgumentParser(description="A chat endpoint that fails by plan.")
    parser.add_argument("--share", type=float, default=0.3, help="of the tries that fail")
    parser.add_argument("--seconds", type=float, default=0.2, help="that an answer takes")
    parser.add_argument("--retry-after", type=float, default=0.3, help="seconds that a 429 asks for")
    parser.add_argument("--seed", type=int, default=0, help="of the plan")
    arguments = parser.parse_args()
    behaviour = Failing(arguments.share, arguments.seconds, arguments.retry_after, arguments.seed)

    async def serve() -> None:
        stub = StubEndpoint(behaviour)
        serving = asyncio.create_task(stub.serve())
        while not stub._ready.is_set():
            await asyncio.sleep(0.01)
        print(stub.base_url, flush=True)
        await serving

    asyncio.run(serve())


if __name__ == "__main__":
    main()
