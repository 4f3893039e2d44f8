"""Which batch is worked on next when workers may die, and what becomes of a batch that they die of.

Belongs here: the order of batches and the counting of deaths. Does not belong here: workers (ray_compute.py).
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from resources.outcome import Unavailable
from storage.refresh import BatchResult, Failure


@dataclass(eq=False)
class QueuedBatch:
    """A batch, or a part of one, with the workers that died of it."""

    rows: pa.Table
    deaths: int = 0
    is_part: bool = False


@dataclass
class BatchQueue:
    """Batches are drawn from `source` one by one, as workers ask for them.

    A batch that was lost without its fault comes first again; one that a worker died of comes last, so that one bad
    row holds up no good one. After `deaths_per_batch` deaths it is halved, a suspect half after one death more, and
    a single row that costs `deaths_per_batch` workers goes to the quarantine. Where nothing but deaths is seen, no row
    is to blame: Unavailable, after 10 deaths in a row and one for each worker.
    """

    source: Iterator[pa.Table]
    deaths_per_batch: int
    workers: int
    deaths_in_a_row: int = 0
    deaths: int = 0
    _lost: deque[QueuedBatch] = field(default_factory=deque)
    _suspects: deque[QueuedBatch] = field(default_factory=deque)
    _open: bool = True
    _closed: bool = False

    def next(self) -> QueuedBatch | None:
        """The next batch; None where there is none just now."""
        if self._lost:
            return self._lost.popleft()
        if self._open:
            rows = next(self.source, None)
            if rows is not None:
                return QueuedBatch(rows)
            self._open = False
        return self._suspects.popleft() if self._suspects else None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to be given out."""
        return not (self._open or self._lost or self._suspects)

    @property
    def is_closed(self) -> bool:
        """Whether nothing is to be given out any more."""
        return self._closed

    def close(self) -> None:
        """Give out no more batches."""
        self._open, self._closed = False, True
        self._lost.clear()
        self._suspects.clear()

    def finished(self) -> None:
        """A batch has its result: workers can work."""
        self.deaths_in_a_row = 0

    def lost(self, batch: QueuedBatch) -> None:
        """The batch waited at a worker that died of something else."""
        if not self._closed:
            self._lost.append(batch)

    def killed(self, batch: QueuedBatch, reason: str) -> tuple[pa.Table, BatchResult] | None:
        """A worker died while it had this batch at work. The quarantined row, if that is what it has come to.

        Raises Unavailable where workers do nothing but die.
        """
        self.deaths += 1
        self.deaths_in_a_row += 1
        if self.deaths_in_a_row > 10 + self.workers:
            raise Unavailable(
                f"{self.deaths_in_a_row} workers died one after the other and none finished a batch, so no row is to "
                f"blame. The last one: {reason}"
            )
        if self._closed:
            return None
        batch.deaths += 1
        count = batch.rows.num_rows
        if count == 1 and batch.deaths >= self.deaths_per_batch:
            times = "once" if batch.deaths == 1 else f"{batch.deaths} times"
            failure = Failure(
                batch.rows["input_id"][0].as_py(), f"WorkerDied: its worker died {times} on this row alone: {reason}"
            )
            return batch.rows, BatchResult(batch.rows.slice(0, 0), [failure])
        if count > 1 and (batch.is_part or batch.deaths >= self.deaths_per_batch):
            half = count // 2
            for part in (batch.rows.slice(0, half), batch.rows.slice(half)):
                self._suspects.append(QueuedBatch(part, is_part=True))
        else:
            self._suspects.append(batch)
        return None
