"""The lake against Dagster's own IO managers for tables: DuckDB with pandas, and Delta Lake with pandas.

    python -m pip install dagster-duckdb-pandas==0.29.27 dagster-deltalake-pandas==0.29.27    # for this only
    python benchmarks/table_stores.py --rows 1000000

The same rows of text (a key, a query, a prompt) in the same run, each store in a folder of its own:

    write     all rows into a new table
    read      all rows and columns back, in the form that the store gives to an asset (pandas; the lake: Arrow)
    filtered  1% of the rows by their keys. IO managers read whole tables or partitions: reading and filtering in
              pandas is what an asset can do there
    add 1%    what it takes until a table with all rows holds 1% more: an upsert in the lake; an IO manager is given
              all rows again
    four writers at once, each a process of its own that writes so many batches into a table of its own: how many
              writes failed, and how many batches a second went in. An IO manager writes a table as a whole, so a batch
              is a table there, too, of the same rows for all

Sides are measured one after the other, each figure being the best of the rounds: of noise there is more than of luck.
"""

import argparse
import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.ids import content_id
from storage.lake import Lake
from storage.recipe import stamped
from storage.tables import TEXT, Column, Table
from vpo_assets.report.tables import print_tables

WRITERS = 4


def rows_of(count: int, first: int = 0) -> pa.Table:
    """So many rows with a key, a query and a prompt of three hundred characters."""
    numbers = range(first, first + count)
    rng = np.random.default_rng(0)
    words = np.array(
        [
            "hoop",
            "wedge",
            "ball",
            "box",
            "pyramid",
            "donut",
            "disc",
            "kite",
            "lantern",
            "slowly",
            "turns",
            "drifts",
            "light",
            "field",
        ]
    )
    texts = [" ".join(words[chosen]) for chosen in rng.integers(0, len(words), (1000, 45))]
    return pa.table(
        {
            "prompt_id": [content_id(str(n)) for n in numbers],
            "query": [f"an amber hoop drifts over field {n}" for n in numbers],
            "prompt": [f"{n}: {texts[n % 1000]}" for n in numbers],
        }
    )


class Store(Protocol):
    """What is compared."""

    def write(self, name: str, rows: pa.Table) -> None: ...

    def add(self, name: str, rows: pa.Table, more: pa.Table) -> None: ...

    def read(self, name: str) -> int: ...

    def some(self, name: str, keys: pa.Array) -> int: ...


class OfLake:
    """Tables of storage/lake.py."""

    def __init__(self, folder: Path) -> None:
        self._lake = Lake(folder)

    def _table(self, name: str) -> Table:
        columns = (Column("prompt_id", TEXT, "", False), Column("query", TEXT, ""), Column("prompt", TEXT, ""))
        return Table(name, "prompt_id", columns, "Rows.")

    def write(self, name: str, rows: pa.Table) -> None:
        table = self._table(name)
        self._lake.create(table)
        rows = stamped(rows.append_column("input_id", rows["prompt_id"]), "benchmark", "benchmark")
        with self._lake.write({"asset": name}) as transaction:
            transaction.upsert(table, rows)

    def add(self, name: str, rows: pa.Table, more: pa.Table) -> None:
        del rows
        self.write(name, more)

    def read(self, name: str) -> int:
        return int(self._lake.read(self._table(name)).num_rows)

    def some(self, name: str, keys: pa.Array) -> int:
        table = self._table(name)
        sql = f"SELECT * FROM {table.qualified} SEMI JOIN keys USING (prompt_id)"
        return int(self._lake.query(sql, keys=pa.table({"prompt_id": keys})).num_rows)


class OfManager:
    """Tables of a Dagster IO manager, through the calls that a run makes."""

    def __init__(self, factory: Any, settings: dict[str, Any]) -> None:
        import dagster

        self._manager = factory.create_io_manager(dagster.build_init_resource_context(config=settings))
        self._settings = settings

    def write(self, name: str, rows: pa.Table) -> None:
        import dagster
        import pandas

        context = dagster.build_output_context(
            asset_key=dagster.AssetKey([name]),
            definition_metadata={},
            dagster_type=dagster.PythonObjectDagsterType(pandas.DataFrame),
            resource_config=self._settings,
        )
        self._manager.handle_output(context, rows.to_pandas())

    def add(self, name: str, rows: pa.Table, more: pa.Table) -> None:
        self.write(name, pa.concat_tables([rows, more]))

    def read(self, name: str) -> int:
        return len(self._frame(name))

    def some(self, name: str, keys: pa.Array) -> int:
        frame = self._frame(name)
        return int(frame["prompt_id"].isin(keys.to_pylist()).sum())

    def _frame(self, name: str) -> Any:
        import dagster
        import pandas

        key = dagster.AssetKey([name])
        upstream = dagster.build_output_context(asset_key=key, definition_metadata={})
        context = dagster.build_input_context(
            asset_key=key,
            upstream_output=upstream,
            dagster_type=dagster.PythonObjectDagsterType(pandas.DataFrame),
            definition_metadata={},
            resource_config=self._settings,
        )
        return self._manager.load_input(context)


def of_duckdb(folder: Path) -> OfManager:
    """dagster-duckdb-pandas."""
    from dagster_duckdb_pandas import DuckDBPandasIOManager

    folder.mkdir(parents=True, exist_ok=True)
    settings = {"database": str(folder / "tables.duckdb"), "schema": "main"}
    return OfManager(DuckDBPandasIOManager(**settings), {**settings, "connection_config": {}})


def of_delta(folder: Path) -> OfManager:
    """dagster-deltalake-pandas."""
    from dagster_deltalake import LocalConfig
    from dagster_deltalake_pandas import DeltaLakePandasIOManager

    folder.mkdir(parents=True, exist_ok=True)
    factory = DeltaLakePandasIOManager(root_uri=str(folder), storage_options=LocalConfig(), schema="main")
    return OfManager(factory, {"root_uri": str(folder), "storage_options": {"local": {}}, "mode": "overwrite"})


STORES: dict[str, Callable[[Path], Store]] = {
    "lake": OfLake,
    "dagster-duckdb-pandas": of_duckdb,
    "dagster-deltalake-pandas": of_delta,
}


def best(rounds: int, work: Callable[[int], Any]) -> float:
    """Seconds of the fastest round; `work` gets the round's number."""
    taken = []
    for number in range(rounds):
        started = time.perf_counter()
        work(number)
        taken.append(time.perf_counter() - started)
    return min(taken)


def measure(name: str, folder: Path, count: int, rounds: int) -> dict[str, Any]:
    """One store by itself."""
    store = STORES[name](folder / name)
    rows, more = rows_of(count), rows_of(count // 100, first=count)
    keys = rows["prompt_id"].take(pa.array(np.arange(0, count, 100))).combine_chunks()
    written = best(rounds, lambda number: store.write(f"rows{number}", rows))
    read = best(rounds, lambda number: store.read(f"rows{number}"))
    some = best(rounds, lambda number: store.some(f"rows{number}", keys))
    added = best(rounds, lambda number: store.add(f"rows{number}", rows, more))
    assert store.read("rows0") == count + len(more)
    assert store.some("rows0", keys) == pc.count(keys).as_py()
    return {"write s": written, "read s": read, "filtered s": some, "add 1% s": added}


def one_writer(name: str, folder: Path, writer: int, batches: int, size: int, ready: Any, failures: Any) -> None:
    """Write batches, each as a table of its own in the IO managers and as more rows in the lake; count failures."""
    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    failed, last = 0, ""
    store = STORES[name](folder)
    ready.wait()
    for batch in range(batches):
        try:
            table = f"of{writer}" if name == "lake" else f"of{writer}_{batch}"
            store.write(table, rows_of(size, first=batch * size))
        except Exception as error:  # whatever it is, the batch is not there
            failed, last = failed + 1, f"{type(error).__name__}: {error}"
    failures.put((failed, last))


def at_once(name: str, folder: Path, batches: int, size: int) -> dict[str, Any]:
    """Four writers in processes of their own."""
    context = multiprocessing.get_context("spawn")
    failures, ready = context.Queue(), context.Barrier(WRITERS + 1)
    STORES[name](folder).write("before", rows_of(10))  # the store is there before the writers are
    writers = [
        context.Process(target=one_writer, args=(name, folder, number, batches, size, ready, failures))
        for number in range(WRITERS)
    ]
    for writer in writers:
        writer.start()
    ready.wait()  # everything is imported
    started = time.perf_counter()
    found = [failures.get(timeout=600) for _ in writers]
    for writer in writers:
        writer.join()
    seconds = time.perf_counter() - started
    failed = sum(count for count, _ in found)
    said = next((text for count, text in found if count), "")
    written = WRITERS * batches - failed
    return {"failed writes": f"{failed} of {WRITERS * batches}", "batches/s": written / seconds, "said": said[:90]}


def main() -> None:
    """Measure every store, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batches", type=int, default=25, help="of each of the four writers")
    parser.add_argument("--batch", type=int, default=200, help="rows of a batch")
    parser.add_argument("--folder", help="where the stores are made; 3 GB for a million rows")
    chosen = parser.parse_args()
    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    table, together = [], []
    for name in STORES:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
            alone = measure(name, Path(folder), chosen.rows, chosen.rounds)
            table.append({"store": name, **{what: f"{seconds:.2f}" for what, seconds in alone.items()}})
            figures = at_once(name, Path(folder) / "four", chosen.batches, chosen.batch)
            together.append({"store": name, **figures, "batches/s": f"{figures['batches/s']:.1f}"})
    title = f"{chosen.rows:,} rows, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}"
    print_tables({title: table, f"{WRITERS} writers at once, batches of {chosen.batch} rows": together})


if __name__ == "__main__":
    main()
