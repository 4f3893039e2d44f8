"""Four writers at once in a shared lake: each waiting for a lock, against all trying and repeating what conflicts.

    python -m services.local_servers --folder /tmp/servers       # export what it prints
    python -m benchmarks.catalog_writers --rounds 5

Each writer is a process that upserts batches of rows into the lake of VPO_LAKE__CATALOG and VPO_LAKE__DATA, in three
ways: into a table of its own; new keys into one table; and the same keys into one table, as when two machines do the
same work. "locks" is what the lake does (storage/lake_place.py): one write transaction at a time. "optimistic" leaves
the lock out: DuckLake repeats a commit that conflicts by itself, and what it then refuses is begun again here.

Rounds of both take turns, and the figures are their medians: other work on the machine strikes both alike. Tables are
named by the round, and stay in the lake.
"""

import argparse
import multiprocessing
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.table_stores import WRITERS, rows_of
from storage.faults import LakeError
from storage.lake import Lake
from storage.lake_place import SharedPlace
from storage.object_store import ObjectStoreAccess
from storage.recipe import stamped
from storage.tables import TEXT, Column, Table
from vpo_assets.report.tables import print_tables

KEYS = ("own tables", "new keys", "same keys")
MOST_TRIES = 100


class WithoutLock(SharedPlace):
    """The same lake without its locks."""

    @contextmanager
    def locked(self, name: str = "lake", *, timeout: float | None = None) -> Iterator[None]:  # noqa: ARG002 (no lock)
        yield

    def require_lock(self) -> None:
        return


def lake_of(kind: str) -> Lake:
    """The lake of the environment, in a folder of this process."""
    place = SharedPlace if kind == "locks" else WithoutLock
    access = ObjectStoreAccess(os.environ.get("VPO_OBJECT_STORE__ENDPOINT_URL"))
    folder = Path(tempfile.mkdtemp(prefix="vpo-writer-"))
    return Lake(place(os.environ["VPO_LAKE__CATALOG"], os.environ["VPO_LAKE__DATA"], folder, access))


def table_of(name: str) -> Table:
    columns = (Column("prompt_id", TEXT, "", False), Column("query", TEXT, ""), Column("prompt", TEXT, ""))
    return Table(name, "prompt_id", columns, "Rows.")


def one_writer(kind: str, keys: str, name: str, writer: int, batches: int, size: int, ready: Any, answers: Any) -> None:
    """Write the batches; answer with how often one was begun again, and the longest that one took."""
    lake = lake_of(kind)
    table = table_of(f"{name}_{writer}" if keys == KEYS[0] else name)
    lake.query("SELECT 1")
    ready.wait()
    repeated, longest = 0, 0.0
    for batch in range(batches):
        first = batch * size if keys != KEYS[1] else (writer * batches + batch) * size
        rows = rows_of(size, first=first)
        rows = stamped(rows.append_column("input_id", rows["prompt_id"]), "benchmark", "benchmark")
        started = time.perf_counter()
        for attempt in range(MOST_TRIES):
            try:
                with lake.write({"asset": table.name}) as transaction:
                    transaction.upsert(table, rows)
                break
            except LakeError:
                if attempt == MOST_TRIES - 1:
                    raise
                repeated += 1
        longest = max(longest, time.perf_counter() - started)
    answers.put((repeated, longest))


def measured(kind: str, keys: str, batches: int, size: int) -> dict[str, float]:
    """One round."""
    context = multiprocessing.get_context("spawn")
    answers, ready = context.Queue(), context.Barrier(WRITERS + 1)
    name = f"w{secrets.token_hex(4)}"
    names = [f"{name}_{writer}" for writer in range(WRITERS)] if keys == KEYS[0] else [name]
    lake = lake_of("locks")
    lake.create(*(table_of(one) for one in names))
    writers = [
        context.Process(target=one_writer, args=(kind, keys, name, writer, batches, size, ready, answers))
        for writer in range(WRITERS)
    ]
    for writer in writers:
        writer.start()
    ready.wait()
    started = time.perf_counter()
    found = [answers.get(timeout=600) for _ in writers]
    seconds = time.perf_counter() - started
    for writer in writers:
        writer.join()
    doubled = sum(
        lake.query(f"SELECT count(*) - count(DISTINCT prompt_id) AS n FROM {table_of(one).qualified}")["n"][0].as_py()
        for one in names
    )
    return {
        "batches/s": WRITERS * batches / seconds,
        "begun again": sum(repeated for repeated, _ in found),
        "longest s": max(longest for _, longest in found),
        "keys twice": doubled,
    }


def main() -> None:
    """Measure both, print medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=10, help="of each of the four writers")
    parser.add_argument("--batch", type=int, default=200, help="rows of a batch")
    chosen = parser.parse_args()
    if not {"VPO_LAKE__CATALOG", "VPO_LAKE__DATA"} <= set(os.environ):
        parser.error("export VPO_LAKE__CATALOG and VPO_LAKE__DATA, as `python -m services.local_servers` prints them")
    table = []
    for keys in KEYS:
        found: dict[str, list[dict[str, float]]] = {"locks": [], "optimistic": []}
        for _ in range(chosen.rounds):
            for kind, rounds in found.items():
                rounds.append(measured(kind, keys, chosen.batches, chosen.batch))
        for kind, rounds in found.items():
            medians = {what: f"{statistics.median(one[what] for one in rounds):.3g}" for what in rounds[0]}
            rates = [one["batches/s"] for one in rounds]
            table.append({"keys": keys, "commits": kind, **medians, "range": f"{min(rates):.1f} to {max(rates):.1f}"})
    title = f"{WRITERS} writers, {chosen.batches} batches of {chosen.batch} rows each, median of {chosen.rounds}, "
    print_tables({f"{title}{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}": table})


if __name__ == "__main__":
    main()
