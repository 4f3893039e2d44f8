"""A refresh's batches, watched from outside: where the time goes, and whether there is room for the next one.

Belongs here: a mapper around the platform's mapper. Does not belong here: doing the work (resources/compute.py).
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from storage.refresh import BatchFunction, BatchResult, Mapper


@dataclass
class WatchedWork:
    """Passes batches through `mapper`, calls `before_each` before a batch is begun, and adds up seconds: those in which
    results were waited for (the model's), and those between them (the commits')."""

    mapper: Mapper
    before_each: Callable[[], None]
    model_seconds: float = 0.0
    storage_seconds: float = 0.0

    def __call__(self, function: BatchFunction, batches: Iterable[pa.Table]) -> Iterator[tuple[pa.Table, BatchResult]]:
        results = iter(self.mapper(function, self._begun(batches)))
        while True:
            asked = time.monotonic()
            try:
                result = next(results)
            except StopIteration:
                return
            finally:
                self.model_seconds += time.monotonic() - asked
            given = time.monotonic()
            try:
                yield result
            finally:
                self.storage_seconds += time.monotonic() - given

    def _begun(self, batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for batch in batches:
            self.before_each()
            yield batch
