"""How much of the time that the allowed concurrency makes possible is made use of, whatever else the machine does.

Here: `Endpoint` on a clock that jumps to the next event as soon as there is nothing to compute, against a server that
is a function. Not here: the same against a real server in real time (benchmarks/endpoint.py).
"""

import asyncio
import heapq
import random
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from benchmarks.endpoint import Terms, schedule_seconds
from resources import endpoint
from resources.backend_settings import EndpointSettings
from resources.endpoint import Endpoint, Session
from tests.resources.stub_endpoint import Asked, Failing

TERMS = Terms(share=0.3, seconds=0.2, retry_after=0.3, concurrency=64, timeout=1.0)


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits: its clock is always at the next thing to do."""

    _scheduled: list[Any]
    _ready: Any
    _timer_cancelled_count: int
    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        while self._scheduled and self._scheduled[0].cancelled():
            heapq.heappop(self._scheduled)._scheduled = False
            self._timer_cancelled_count -= 1
        if not self._ready and self._scheduled:
            self.now = max(self.now, self._scheduled[0].when())
        super()._run_once()  # type: ignore[misc]


class Server:
    """A function that does what the stub does, and notes it."""

    def __init__(self) -> None:
        self.plan = Failing(TERMS.share, TERMS.seconds, TERMS.retry_after)
        self.chains: dict[str, list[str]] = defaultdict(list)
        self.under_way = self.most_under_way = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path
        answer = self.plan(Asked("POST", name, {}, None, name, len(self.chains[name]) + 1))
        self.chains[name].append(answer.kind)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(answer.seconds)
        finally:
            self.under_way -= 1
        if answer.cut:
            raise httpx.RemoteProtocolError("cut")
        return httpx.Response(answer.status, headers=answer.headers, content=answer.body)


async def ask(session: Session, item: int) -> int:
    await session.request_json("POST", f"/{item}", lambda answer: answer["choices"])
    return item


def test_bad_luck_of_some_leaves_no_place_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    server, loop = Server(), JumpingLoop()

    async def client(self: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(server))

    monkeypatch.setattr(endpoint._Clients, "_another", client)
    monkeypatch.setattr(endpoint, "random", random.Random(0))
    monkeypatch.setattr(endpoint, "time", SimpleNamespace(monotonic=loop.time))
    settings = EndpointSettings(
        base_url="http://server/v1", concurrency=TERMS.concurrency, timeout=TERMS.timeout, retries=12
    )
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        outcomes, _ = runner.run(Endpoint(settings)._each(range(2000), ask, None))
    chains = list(server.chains.values())
    assert outcomes == list(range(2000))
    assert all(chain.count("good") == 1 for chain in chains)
    assert server.most_under_way == TERMS.concurrency
    assert schedule_seconds(chains, TERMS) > 0.9 * loop.now
