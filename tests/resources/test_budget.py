import asyncio
import threading

import pytest

from resources.backend_settings import BudgetSettings
from resources.budget import Budget, Spent
from resources.outcome import Unavailable


def spend(budget: Budget, costs: list[Spent], most: Spent, *, seconds: float = 0.0) -> tuple[int, int]:
    """Begin requests that cost so much, all at once; how many ended, and how many were under way at the most."""
    under_way = most_under_way = 0

    async def one(cost: Spent) -> int:
        nonlocal under_way, most_under_way
        try:
            async with budget.reserved(most):
                under_way += 1
                most_under_way = max(most_under_way, under_way)
                await asyncio.sleep(seconds)
                budget.count(cost)
                under_way -= 1
        except Unavailable:
            return 0
        return 1

    async def everyone() -> int:
        return sum(await asyncio.gather(*(one(cost) for cost in costs)))

    return asyncio.run(everyone()), most_under_way


def test_without_limits_nothing_is_held_back() -> None:
    budget = Budget(BudgetSettings(), "the model m")
    assert spend(budget, [Spent(1, 10**9, 10**9)] * 50, Spent(1, 10**9, 10**9)) == (50, 50)
    assert budget.spent == Spent(50, 50 * 10**9, 50 * 10**9)


def test_all_of_it_is_used_and_no_more_than_one_request_over() -> None:
    budget = Budget(BudgetSettings(tokens=1000), "the model m")
    ended, most_under_way = spend(budget, [Spent(1, 20, 10)] * 100, Spent(1, 30, 70), seconds=0.001)
    assert ended == 34  # 33 cost 990
    assert budget.spent.tokens == 1020
    assert 1 < most_under_way <= 10  # ten times 100 might be all of it


def test_money_is_counted_by_the_prices() -> None:
    settings = BudgetSettings(money=1.0, price_per_million_prompt_tokens=2, price_per_million_completion_tokens=10)
    budget = Budget(settings, "the model m")
    assert budget.cost(1000, 500).money == pytest.approx(0.007)
    budget.count(budget.cost(250_000, 50_001))
    with pytest.raises(Unavailable, match=r"1\.00 of 1\.00 in money; raise budget\.money of the model m"):
        asyncio.run(budget.reserved(budget.cost(1, 1)).__aenter__())


def test_what_is_said_when_it_is_spent_names_the_key_to_raise() -> None:
    budget = Budget(BudgetSettings(tokens=1000), "the model m")
    budget.count(Spent(1, 1000, 234))
    with pytest.raises(Unavailable, match=r"1,234 of 1,000 tokens; raise budget\.tokens of the model m"):
        asyncio.run(budget.reserved(Spent()).__aenter__())


def test_a_request_that_breaks_off_gives_its_reserve_back() -> None:
    budget = Budget(BudgetSettings(tokens=100), "the model m")

    async def broken() -> None:
        async with budget.reserved(Spent(1, 50, 50)):
            raise KeyError

    for _ in range(3):
        with pytest.raises(KeyError):
            asyncio.run(broken())
    assert spend(budget, [Spent(1, 1, 1)], Spent(1, 50, 50)) == (1, 1)


def test_one_that_waits_may_be_cancelled() -> None:
    budget = Budget(BudgetSettings(tokens=100), "the model m")

    async def scene() -> None:
        async with budget.reserved(Spent(1, 100, 100)):
            waiting = asyncio.create_task(budget.reserved(Spent(1, 1, 1)).__aenter__())
            await asyncio.sleep(0.01)
            assert not waiting.done()
            waiting.cancel()
            await asyncio.wait([waiting])
        async with budget.reserved(Spent(1, 1, 1)):
            pass

    asyncio.run(scene())


def test_threads_share_it() -> None:
    budget = Budget(BudgetSettings(tokens=1000), "the model m")
    ended: list[int] = []

    def run() -> None:
        ended.append(spend(budget, [Spent(1, 5, 5)] * 50, Spent(1, 50, 50), seconds=0.001)[0])

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(ended) == 100
    assert budget.spent == Spent(100, 500, 500)
