"""Which batch comes next when workers die, without any worker."""

from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.batch_queue import BatchQueue, QueuedBatch
from resources.outcome import Unavailable


def batches_of(count: int, size: int) -> list[pa.Table]:
    return [pa.table({"input_id": [f"{batch}-{row}" for row in range(size)]}) for batch in range(count)]


def ids(batch: QueuedBatch | None) -> list[str]:
    assert batch is not None
    return list(batch.rows["input_id"].to_pylist())


def test_batches_are_drawn_one_by_one() -> None:
    drawn = []

    def source() -> Iterator[pa.Table]:
        for batch in batches_of(3, 1):
            drawn.append(batch)
            yield batch

    queue = BatchQueue(source(), deaths_per_batch=2, workers=1)
    assert not drawn
    assert ids(queue.next()) == ["0-0"]
    assert len(drawn) == 1
    assert not queue.is_empty
    queue.next()
    queue.next()
    assert queue.next() is None
    assert queue.is_empty


def test_what_was_lost_comes_first_and_what_kills_comes_last() -> None:
    queue = BatchQueue(iter(batches_of(4, 1)), deaths_per_batch=3, workers=1)
    first, second = queue.next(), queue.next()
    assert first is not None and second is not None
    assert queue.killed(first, "gone") is None
    queue.lost(second)
    assert [ids(queue.next())[0] for _ in range(4)] == ["1-0", "2-0", "3-0", "0-0"]


def test_after_closing_nothing_comes_back() -> None:
    queue = BatchQueue(iter(batches_of(4, 2)), deaths_per_batch=1, workers=1)
    first, second = queue.next(), queue.next()
    assert first is not None and second is not None
    queue.close()
    assert queue.killed(first, "gone") is None
    queue.lost(second)
    assert queue.next() is None and queue.is_empty


@given(
    count=st.integers(1, 6),
    size=st.integers(1, 17),
    deaths=st.integers(1, 4),
    bad=st.sets(st.tuples(st.integers(0, 5), st.integers(0, 16)), max_size=2),
)
def test_only_rows_that_kill_are_quarantined_and_all_others_are_done_once(
    count: int, size: int, deaths: int, bad: set[tuple[int, int]]
) -> None:
    every = {f"{batch}-{row}" for batch in range(count) for row in range(size)}
    deadly = {f"{batch}-{row}" for batch, row in bad} & every
    queue = BatchQueue(iter(batches_of(count, size)), deaths, workers=4)
    done: list[str] = []
    quarantined: list[str] = []
    died: dict[str, int] = dict.fromkeys(deadly, 0)
    while (batch := queue.next()) is not None:
        if not deadly & set(ids(batch)):
            done += ids(batch)
            queue.finished()
            continue
        for id_ in deadly & set(ids(batch)):
            died[id_] += 1
        if (found := queue.killed(batch, "out of memory")) is not None:
            rows, result = found
            assert result.rows.num_rows == 0 and "out of memory" in result.failures[0].error
            quarantined += rows["input_id"].to_pylist()
    assert sorted(done) == sorted(every - deadly)
    assert sorted(quarantined) == sorted(deadly)
    assert all(times <= 2 * deaths + 5 for times in died.values())


def test_where_nothing_but_deaths_is_seen_nobody_is_blamed() -> None:
    queue = BatchQueue(iter(batches_of(100, 8)), deaths_per_batch=2, workers=3)
    for _ in range(13):
        batch = queue.next()
        assert batch is not None and queue.killed(batch, "gone") is None
    batch = queue.next()
    assert batch is not None
    with pytest.raises(Unavailable, match=r"14 workers died .* no row is to blame\. The last one: gone"):
        queue.killed(batch, "gone")
