"""What asking a paid model may cost, and what it has cost.

Belongs here: counting tokens and money, and holding back requests when they run out. Does not belong here: who is
asked, or what for.
"""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass

from resources.backend_settings import BudgetSettings
from resources.outcome import Unavailable


@dataclass(frozen=True)
class Spent:
    """Requests that were answered, and their cost. Money is in the currency of the prices; 0 without prices."""

    requests: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    money: float = 0.0

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.new_tokens

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.new_tokens + other.new_tokens,
            self.money + other.money,
        )


class Budget:
    """What one run may spend, counted over the life of this object; threads and event loops may share it.

    A request is begun only while what is spent, together with the most that the requests under way may cost, is
    below the budget; near its end requests therefore go one after the other. Since that last one is not known
    before it is answered, the budget is overdrawn by the cost of one request at most (and by what a server charges
    for answers that never arrived, which nobody here can see).
    """

    def __init__(self, settings: BudgetSettings, whose: str) -> None:
        self.settings = settings
        self._whose = whose
        self._lock = threading.Lock()
        self._spent = Spent()
        self._reserved: dict[object, Spent] = {}
        self._waiting: list[Future[None]] = []

    @property
    def spent(self) -> Spent:
        """All that was counted until now."""
        with self._lock:
            return self._spent

    def cost(self, prompt_tokens: int, new_tokens: int) -> Spent:
        """One request with so many tokens, at the settings' prices."""
        money = (
            prompt_tokens * self.settings.price_per_million_prompt_tokens
            + new_tokens * self.settings.price_per_million_completion_tokens
        )
        return Spent(1, prompt_tokens, new_tokens, money / 1e6)

    def count(self, cost: Spent) -> None:
        """An answer came, and this is what it cost."""
        with self._lock:
            self._spent += cost

    @asynccontextmanager
    async def reserved(self, most: Spent) -> AsyncIterator[None]:
        """Around one request that costs so much at most. Waits while the rest of the budget is under way.

        Raises Unavailable when the budget is spent.
        """
        ticket = object()
        while waiter := self._reserve(ticket, most):
            await asyncio.wrap_future(waiter)
        try:
            yield
        finally:
            self._release(ticket)

    def _reserve(self, ticket: object, most: Spent) -> Future[None] | None:
        """Reserve and return None, or return what ends when it is worth asking again. Raises Unavailable."""
        with self._lock:
            self._raise_if_reached(self._spent)
            if not self._reached(sum(self._reserved.values(), self._spent)):
                self._reserved[ticket] = most
                return None
            waiter: Future[None] = Future()
            self._waiting.append(waiter)
            return waiter

    def _release(self, ticket: object) -> None:
        with self._lock:
            del self._reserved[ticket]
            waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if waiter.set_running_or_notify_cancel():
                waiter.set_result(None)

    def _reached(self, cost: Spent) -> list[str]:
        """Which limits such a cost reaches, in words."""
        tokens, money = self.settings.tokens, self.settings.money
        reached = []
        if tokens is not None and cost.tokens >= tokens:
            reached.append(f"{cost.tokens:,} of {tokens:,} tokens; raise budget.tokens")
        if money is not None and cost.money >= money:
            reached.append(f"{cost.money:,.2f} of {money:,.2f} in money; raise budget.money")
        return reached

    def _raise_if_reached(self, cost: Spent) -> None:
        if reached := self._reached(cost):
            raise Unavailable(
                f"the budget of one run is spent: {' and '.join(reached)} of {self._whose} in the profile, "
                "or go on with the next run"
            )
