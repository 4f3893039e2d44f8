"""Requests of many clients, answered together: one call of the model for all that wait.

Belongs here: the bounded queue, and the one thread that the model works in. Does not belong here: HTTP.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from resources.optimizer_settings import ServingSettings
from resources.outcome import Unavailable
from resources.prompt_optimizer import Answer, Ask, PromptOptimizer

T = TypeVar("T")


class QueueFull(RuntimeError):
    """So much waits already that a request is turned away."""


class ShuttingDown(RuntimeError):
    """The server ends; nothing more is taken."""


class _Job:
    """The asks of one request, and its answers to be."""

    def __init__(self, asks: Sequence[Ask], answers: "asyncio.Future[list[Answer]]") -> None:
        self.asks = asks
        self.answers = answers


class Batcher:
    """Collects up to `batch_size` prompts, or what comes within `wait_ms`, into one call of the optimizer.

    The model is loaded, called and closed in one thread. A request whose client is gone before its turn is dropped.
    """

    def __init__(self, optimizer: PromptOptimizer, settings: ServingSettings) -> None:
        self._optimizer = optimizer
        self._settings = settings
        self._waiting: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        self._ending = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self.batches = 0
        """Calls of the optimizer so far."""

    @property
    def waiting(self) -> int:
        """Prompts that wait for their turn."""
        return sum(len(job.asks) for job in self._waiting if not job.answers.cancelled())

    async def answers(self, asks: Sequence[Ask]) -> list[Answer]:
        """What becomes of the asks of one request. Raises QueueFull, ShuttingDown, and whatever the model raised."""
        if self._ending:
            raise ShuttingDown("the server is shutting down")
        if self.waiting and self.waiting + len(asks) > self._settings.queue:
            raise QueueFull(f"{self.waiting} prompts wait already; try again later")
        job = _Job(asks, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._arrived.set()
        if self.waiting >= self._settings.batch_size:
            self._full.set()
        return await job.answers

    async def run(self) -> None:
        """Answer until `end` was called and nothing waits."""
        while True:
            await self._arrived.wait()
            if not self._waiting:
                if self._ending:
                    return
                self._arrived.clear()
                continue
            await self._company()
            batch = self._next()
            if batch:
                await self._answer(batch)

    def end(self) -> None:
        """Take nothing more; what waits is still answered."""
        self._ending = True
        self._arrived.set()
        self._full.set()

    async def load(self) -> None:
        """Have the model in memory and warm before the first request, so that nobody waits for it."""
        await self._in_thread(self._load)

    async def close(self) -> None:
        """Free the model."""
        await self._in_thread(self._optimizer.close)
        self._thread.shutdown()

    def _load(self) -> None:
        self._optimizer.answer([Ask("a red ball")])

    async def _company(self) -> None:
        """Give others a moment to join the first."""
        if self.waiting >= self._settings.batch_size or self._ending or not self._settings.wait_ms:
            return
        self._full.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._full.wait(), self._settings.wait_ms / 1000)

    def _next(self) -> list[_Job]:
        """The requests of the next call: as many as fit, at least one."""
        batch: list[_Job] = []
        size = 0
        while self._waiting and (not batch or size + len(self._waiting[0].asks) <= self._settings.batch_size):
            job = self._waiting.popleft()
            if not job.answers.cancelled():
                batch.append(job)
                size += len(job.asks)
        return batch

    async def _answer(self, batch: Sequence[_Job]) -> None:
        asks = [ask for job in batch for ask in job.asks]
        self.batches += 1
        try:
            answers = await self._in_thread(lambda: self._optimizer.answer(asks))
        except Exception as error:  # of any kind: whoever waits for this call must be told
            if len(batch) > 1 and not isinstance(error, Unavailable):
                for job in batch:  # one of them is to blame; the others have done nothing
                    await self._answer([job])
                return
            for job in batch:
                if not job.answers.cancelled():
                    job.answers.set_exception(_fresh(error))
            return
        position = 0
        for job in batch:
            own = answers[position : position + len(job.asks)]
            position += len(job.asks)
            if not job.answers.cancelled():
                job.answers.set_result(own)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _fresh(error: Exception) -> Exception:
    """An exception of its own for each request: one that is raised twice collects both tracebacks."""
    if isinstance(error, Unavailable):
        return Unavailable(str(error))
    fresh = RuntimeError(f"{type(error).__name__}: {error}")
    fresh.__cause__ = error
    return fresh
