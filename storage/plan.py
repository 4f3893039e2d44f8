"""What a refresh would do: which input rows are new, stale, reused, failed, and which rows are orphaned.

Reading only: planning never writes. Doing what the plan says is in `storage.refresh`. All comparing of ids
is done in SQL, and where the last refresh was complete (storage/scope.py) it is done for the queries that changed
since, so that a plan over a million rows takes what the change takes.
"""

# ruff: noqa: S608 (SQL names come from Table, which takes plain identifiers only; values are parameters)

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import duckdb
import pyarrow as pa

from storage.differences import Difference, differences
from storage.ids import content_id
from storage.lake import Lake, LakeError, Transaction
from storage.recipe import Recipe, recall
from storage.scope import EVERYTHING, Scope, scope_of, tables_read
from storage.tables import FAILURES, THROUGHPUT, Table, quoted


class RefreshError(LakeError):
    """The inputs or the function of a refresh do not keep to what refresh asks of them; says how."""


class Mode(StrEnum):
    """INCREMENTAL does what is missing. FULL does everything again (rows already made by the same run id
    excepted, so that a run which is resumed does not start over). APPEND does what is missing and keeps the
    rows of other recipes beside the new ones."""

    INCREMENTAL = "incremental"
    FULL = "full"
    APPEND = "append"


@dataclass(frozen=True)
class RefreshConfig:
    """How to refresh. `limit`: compute at most so many rows this time, those with the smallest input ids.
    `max_attempts`: refreshes that try a failing row before it is given up (until its recipe changes, or FULL
    asks for everything). `max_failure_ratio`: see `storage.refresh.refresh`. `batch_size`: rows that are
    computed and committed together."""

    mode: Mode = Mode.INCREMENTAL
    limit: int | None = None
    retry_failures: bool = True
    max_attempts: int = 3
    max_failure_ratio: float = 0.2
    batch_size: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", Mode(self.mode))
        if self.limit is not None and self.limit < 0:
            raise ValueError(f"limit must be 0 or more, not {self.limit}")
        if self.batch_size < 1 or self.max_attempts < 1:
            raise ValueError("batch_size and max_attempts must be 1 or more")
        if not 0 <= self.max_failure_ratio <= 1:
            raise ValueError(f"max_failure_ratio must lie between 0 and 1, not {self.max_failure_ratio}")


PACE_RUNS = 5
"""So many of the last recorded runs make an estimate: one alone may have been a few rows, or slow to load its model."""


@dataclass(frozen=True)
class Stale:
    """Rows made with one earlier recipe that are to be done again, and what is different now. `differences` is
    None where the lake no longer knows that recipe."""

    recipe: str
    rows: int
    differences: tuple[Difference, ...] | None


@dataclass(frozen=True)
class Plan:
    """What a refresh would do. Each input row is one of new, stale, reused or failed.

    new: no row yet. stale: made with another recipe, lost its file, or to be done again by FULL. reused: its
    row is up to date. failed: in quarantine for this recipe, of which `given_up` will not be tried again.
    orphaned: rows of the table whose input is gone. todo: the input rows to be computed now, at most `limit`.
    changed: names of the recipe parts that made rows stale. stale_by: the same in full, by earlier recipe, the most
    rows first; rows of this very recipe that lost their file or are done again by FULL are not in it.
    rows_per_second: of the last recorded runs, see `pace`.
    """

    table: Table
    recipe: Recipe
    new: int
    stale: int
    reused: int
    orphaned: int
    failed: int
    given_up: int
    todo: pa.Table
    changed: tuple[str, ...]
    stale_by: tuple[Stale, ...]
    rows_per_second: float | None
    """Of earlier refreshes; None if none has been recorded, or if there is nothing to do."""
    replacing: pa.ChunkedArray = field(repr=False)
    """Input ids of todo whose row takes the place of one that is there."""
    retried: pa.ChunkedArray = field(repr=False)
    """Input ids of todo that are in quarantine."""
    doomed: pa.Table = field(repr=False)
    """(input_id, recipe) of rows to remove at the end: orphans, and old rows beside an up-to-date one."""
    released: pa.Table = field(repr=False)
    """(input_id) in quarantine for this recipe whose input is gone or up to date."""
    quarantined: int = field(repr=False)
    """How many entries of `failures` the end of a refresh has to look after."""
    saw: int = field(repr=False)
    """The snapshot at which inputs and table were compared."""
    asked: str | None = field(repr=False)
    """Content id of the SELECT of the inputs; None for inputs that were given as rows."""

    untouched: bool = field(repr=False)
    """Whether nothing that matters has been written to since the last complete refresh."""

    @property
    def does_all(self) -> bool:
        """Whether every input has an up-to-date row once todo is done, and nothing is or was in quarantine."""
        return self.quarantined == 0 and self.todo.num_rows == self.new + self.stale

    @property
    def inputs(self) -> int:
        return self.new + self.stale + self.reused + self.failed

    @property
    def expected_seconds(self) -> float | None:
        """How long todo should take; None if no run has been recorded."""
        if self.todo.num_rows == 0:
            return 0.0
        return self.todo.num_rows / self.rows_per_second if self.rows_per_second else None


def plan(
    lake: Lake,
    table: Table,
    inputs: pa.Table | str,
    recipe: Recipe,
    config: RefreshConfig,
    *,
    lost: Collection[str] = (),
    run_id: str = "",
    by_query: bool = False,
) -> Plan:
    """Compare the inputs with the rows of the table. Writes nothing.

    `inputs`: an Arrow table, or a SELECT over the lake (which must answer the same each time it is asked),
    with a column input_id: unique, a hash of everything in the row that decides the result. `lost`: input
    ids whose row is there but whose file is gone; they are done again. `run_id` matters to FULL only, which
    reuses what its own run has made. `by_query`: the inputs of a query depend on that query's rows alone, in all tables
    that the SELECT reads, so that only queries with changed rows need be compared. RefreshError for inputs that cannot
    be read or whose ids are missing or not unique.
    """
    if not table.lineage:
        raise RefreshError(f"table {table.label} has no lineage columns, so it cannot be refreshed")
    table_there, failures_there = lake.exists(table), lake.exists(FAILURES)
    with lake.reading() as cursor, _inputs_as_sql(cursor, inputs) as source:
        reader = Transaction(cursor)
        saw = reader.snapshot()
        _collect_failures(cursor, table, recipe, config, there=failures_there)
        asked = content_id(source) if isinstance(inputs, str) else None
        reads = tables_read(reader, f"FROM {source}") if asked else frozenset()
        # Quarantine is looked after as a whole, and so is what is done again without any change.
        plain = reads and table_there and config.mode is Mode.INCREMENTAL and not lost
        scope = EVERYTHING
        if asked and plain and _one_row(cursor, "SELECT n FROM all_failures")["n"] == 0:
            by_query = by_query and all(name in source for name in reads)  # else it could not be narrowed
            scope = scope_of(reader, table, reads, recipe, asked, by_query=by_query)
        if asked and scope.nothing:
            return _nothing_to_do(reader, table, source, recipe, saw, asked)
        if scope.queries is not None:
            cursor.register("scope", scope.queries)
            source = scope.narrowed(source, reads)
        _collect_wanted(cursor, source, table)
        _collect_present(cursor, table, recipe, config, lost, run_id, scope, there=table_there)
        _sort_out(cursor, config)
        counts = _one_row(cursor, _COUNTS)
        todo = _todo(cursor, source, int(counts["todo"]))
        replacing = _arrow_column(cursor, "SELECT input_id FROM pending WHERE todo AND replaces")
        retried = _arrow_column(cursor, "SELECT input_id FROM pending WHERE todo AND failed")
        released = cursor.execute("SELECT input_id FROM quarantine ANTI JOIN pending USING (input_id)").to_arrow_table()
        doomed = _doomed(cursor, recipe, config)
        others = cursor.execute(_OTHERS).fetchall()
        orphaned = _one_row(cursor, "SELECT count(*) AS n FROM orphans")["n"]
        outside = _outside(cursor, table, scope)
    return Plan(
        table=table,
        recipe=recipe,
        new=counts["new"],
        stale=counts["stale"],
        reused=counts["reused"] + outside,
        orphaned=orphaned,
        failed=counts["failed"],
        given_up=counts["given_up"],
        todo=todo,
        changed=recipe.changed_parts(recall(lake, [other for other, _ in others])),
        stale_by=_stale_by(lake, recipe, others if config.mode is not Mode.APPEND else []),
        rows_per_second=pace(lake, table, recipe) if todo.num_rows else None,
        replacing=replacing,
        retried=retried,
        doomed=doomed,
        released=released,
        quarantined=counts["quarantined"],
        saw=saw,
        asked=asked,
        untouched=False,
    )


def _nothing_to_do(reader: Transaction, table: Table, source: str, recipe: Recipe, saw: int, asked: str) -> Plan:
    """The plan where nothing that matters has been written to."""
    nobody = pa.chunked_array([], pa.string())
    return Plan(
        table=table,
        recipe=recipe,
        new=0,
        stale=0,
        reused=reader.query(f"SELECT count(*) AS n FROM {table.qualified}")["n"][0].as_py(),
        orphaned=0,
        failed=0,
        given_up=0,
        todo=reader.query(f"SELECT * FROM {source} LIMIT 0"),
        changed=(),
        stale_by=(),
        rows_per_second=None,
        replacing=nobody,
        retried=nobody,
        doomed=pa.table({"input_id": nobody, "recipe": nobody}),
        released=pa.table({"input_id": nobody}),
        quarantined=0,
        saw=saw,
        asked=asked,
        untouched=True,
    )


def pace(lake: Lake, table: Table, recipe: Recipe | None = None) -> float | None:
    """Rows a second over the last recorded refreshes of the table: with this recipe if there are any, else with any.

    Rows of all those runs by their seconds together, so that a run of a few rows counts for little.
    """
    if not lake.exists(THROUGHPUT):
        return None
    rows = lake.query(
        "SELECT sum(rows) / sum(seconds) AS pace FROM ("
        f"SELECT rows, seconds FROM {THROUGHPUT.qualified} WHERE table_name = ? AND seconds > 0 AND rows > 0 "
        "QUALIFY (recipe = ?) = max(recipe = ?) OVER () "
        f"ORDER BY {quoted('at')} DESC LIMIT {PACE_RUNS})",
        [table.label, recipe.id if recipe else "", recipe.id if recipe else ""],
    )
    found = rows["pace"][0].as_py()
    return None if found is None else float(found)


def _stale_by(lake: Lake, recipe: Recipe, others: Collection[tuple[str, int]]) -> tuple[Stale, ...]:
    found = []
    for other, rows in others:
        known = recall(lake, [other])
        found.append(Stale(other, rows, differences(known[0], recipe.parts) if known else None))
    return tuple(found)


# ---- the steps of planning, each leaving a temporary table ----------------------------------------------


def _collect_wanted(cursor: duckdb.DuckDBPyConnection, source: str, table: Table) -> None:
    """wanted(input_id)"""
    try:
        cursor.execute(f"CREATE TEMP TABLE wanted AS SELECT input_id::VARCHAR AS input_id FROM {source}")
    except duckdb.Error as error:
        raise RefreshError(f"the inputs of table {table.label} cannot be read: {error}") from error
    found = _one_row(
        cursor,
        "SELECT count(*) AS n, count(input_id) AS with_id, count(DISTINCT input_id) AS ids FROM wanted",
    )
    if found["with_id"] < found["n"]:
        raise RefreshError(
            f"the inputs of table {table.label} have {found['n'] - found['with_id']} rows without input_id"
        )
    if found["ids"] < found["n"]:
        twice = _column(cursor, "SELECT input_id FROM wanted GROUP BY 1 HAVING count(*) > 1 ORDER BY 1 LIMIT 10")
        raise RefreshError(
            f"the inputs of table {table.label} have the same input_id more than once: {', '.join(twice)}"
        )


def _collect_present(
    cursor: duckdb.DuckDBPyConnection,
    table: Table,
    recipe: Recipe,
    config: RefreshConfig,
    lost: Collection[str],
    run_id: str,
    scope: Scope,
    *,
    there: bool,
) -> None:
    """done(input_id): rows that are up to date. redo(input_id): rows of this recipe to be done again.
    others(input_id, recipe): rows of other recipes."""
    rows = scope.rows_of(table.qualified) if there else _NO_ROWS
    _make(cursor, "others", f"SELECT input_id, recipe FROM {rows} WHERE recipe <> ?", [recipe.id])
    _make(cursor, "done", f"SELECT input_id FROM {rows} WHERE recipe = ?", [recipe.id])
    cursor.execute("CREATE TEMP TABLE redo (input_id VARCHAR)")
    if lost:
        cursor.register("lost", pa.table({"input_id": pa.array(list(lost), pa.string())}))
        cursor.execute("INSERT INTO redo FROM done SEMI JOIN lost USING (input_id)")
    if config.mode is Mode.FULL:
        cursor.execute(
            f"INSERT INTO redo SELECT input_id FROM {rows} WHERE recipe = ? AND run_id <> ?",
            [recipe.id, run_id],
        )
    if lost or config.mode is Mode.FULL:
        cursor.execute("DELETE FROM done WHERE input_id IN (SELECT input_id FROM redo)")


_NO_ROWS = "(SELECT NULL::VARCHAR AS input_id, '' AS recipe, '' AS run_id LIMIT 0)"


def _outside(cursor: duckdb.DuckDBPyConnection, table: Table, scope: Scope) -> int:
    """Rows of the table, each of them up to date, that nobody looked at."""
    if scope.everything:
        return 0
    looked_at = "(SELECT count(*) FROM done) + (SELECT count(*) FROM others)"
    return int(_one_row(cursor, f"SELECT count(*) - {looked_at} AS n FROM {table.qualified}")["n"])


def _collect_failures(
    cursor: duckdb.DuckDBPyConnection, table: Table, recipe: Recipe, config: RefreshConfig, *, there: bool
) -> None:
    """quarantine(input_id, given_up, waits): failures of this table and recipe. all_failures(n)."""
    rows = (
        FAILURES.qualified
        if there
        else "(SELECT '' AS table_name, '' AS input_id, '' AS recipe, 0 AS attempts LIMIT 0)"
    )
    full = config.mode is Mode.FULL  # which tries everything again, whatever became of it before
    _make(
        cursor,
        "quarantine",
        f"SELECT input_id, NOT ? AND attempts >= ? AS given_up, given_up OR ? AS waits FROM {rows} "
        "WHERE table_name = ? AND recipe = ?",
        [full, config.max_attempts, not full and not config.retry_failures, table.label, recipe.id],
    )
    _make(cursor, "all_failures", f"SELECT count(*) AS n FROM {rows} WHERE table_name = ?", [table.label])


def _sort_out(cursor: duckdb.DuckDBPyConnection, config: RefreshConfig) -> None:
    """pending(input_id, replaces, failed, given_up, todo): every input whose row is not up to date."""
    replaceable = "redo" if config.mode is Mode.APPEND else "(FROM redo UNION ALL SELECT input_id FROM others)"
    _make(
        cursor,
        "pending",
        f"""
        SELECT input_id, earlier.input_id IS NOT NULL AS replaces, quarantine.input_id IS NOT NULL AS failed,
               coalesce(given_up, false) AS given_up, NOT coalesce(waits, false) AS todo
        FROM (FROM wanted ANTI JOIN done USING (input_id))
        LEFT JOIN (SELECT DISTINCT input_id FROM {replaceable}) AS earlier USING (input_id)
        LEFT JOIN quarantine USING (input_id)
        """,
    )
    if config.limit is not None:
        cursor.execute(
            "UPDATE pending SET todo = false WHERE todo AND input_id NOT IN "
            "(SELECT input_id FROM pending WHERE todo ORDER BY input_id LIMIT ?)",
            [config.limit],
        )
    _make(
        cursor,
        "orphans",
        "FROM (SELECT input_id FROM done UNION ALL FROM redo) ANTI JOIN wanted USING (input_id)",
    )
    if config.mode is not Mode.APPEND:
        cursor.execute("INSERT INTO orphans SELECT input_id FROM others ANTI JOIN wanted USING (input_id)")


_COUNTS = """
SELECT count(*) FILTER (WHERE NOT failed AND NOT replaces) AS new,
       count(*) FILTER (WHERE NOT failed AND replaces) AS stale,
       (SELECT count(*) FROM wanted) - count(*) AS reused,
       count(*) FILTER (WHERE failed) AS failed,
       count(*) FILTER (WHERE given_up) AS given_up,
       count(*) FILTER (WHERE todo) AS todo,
       (SELECT n FROM all_failures) AS quarantined
FROM pending
"""


# Rows by the recipe they were last made with, for inputs that are not up to date.
_OTHERS = """
SELECT recipe, count(*) AS n FROM others SEMI JOIN pending USING (input_id)
GROUP BY recipe ORDER BY n DESC, recipe LIMIT 20
"""


def _todo(cursor: duckdb.DuckDBPyConnection, source: str, expected: int) -> pa.Table:
    """The input rows to compute, in the order of their ids."""
    rows = cursor.execute(
        f"SELECT given.* FROM {source} AS given "
        "JOIN pending ON given.input_id::VARCHAR = pending.input_id AND pending.todo "
        f"ORDER BY pending.input_id{'' if expected else ' LIMIT 0'}"
    ).to_arrow_table()
    if rows.num_rows != expected:
        raise RefreshError(
            f"the SQL of the inputs gave {rows.num_rows} rows where it had given {expected} just before; "
            "it must answer the same each time (no random(), no now())"
        )
    return rows


def _doomed(cursor: duckdb.DuckDBPyConnection, recipe: Recipe, config: RefreshConfig) -> pa.Table:
    """(input_id, recipe) of the rows that a table made from scratch would not have."""
    sql = "SELECT DISTINCT input_id, ? AS recipe FROM orphans"
    if config.mode is not Mode.APPEND:
        sql += (
            " UNION SELECT input_id, recipe FROM others SEMI JOIN orphans USING (input_id)"
            " UNION SELECT input_id, recipe FROM others SEMI JOIN done USING (input_id)"
        )
    return cursor.execute(sql, [recipe.id]).to_arrow_table()


# ---- small helpers ----------------------------------------------------------------------------------------


@contextmanager
def _inputs_as_sql(cursor: duckdb.DuckDBPyConnection, inputs: pa.Table | str) -> Iterator[str]:
    if isinstance(inputs, str):
        yield f"({inputs.strip().rstrip(';')})"
        return
    if "input_id" not in inputs.column_names:
        raise RefreshError("the inputs have no column input_id")
    cursor.register("given_inputs", inputs)
    yield "given_inputs"
    cursor.unregister("given_inputs")


def _make(cursor: duckdb.DuckDBPyConnection, name: str, sql: str, parameters: Collection[Any] = ()) -> None:
    select = sql.strip()
    cursor.execute(f"CREATE TEMP TABLE {name} AS {select}", list(parameters))


def _one_row(cursor: duckdb.DuckDBPyConnection, sql: str) -> dict[str, Any]:
    row: dict[str, Any] = cursor.execute(sql).to_arrow_table().to_pylist()[0]
    return row


def _arrow_column(cursor: duckdb.DuckDBPyConnection, sql: str) -> pa.ChunkedArray:
    return cursor.execute(sql).to_arrow_table().column(0)


def _column(cursor: duckdb.DuckDBPyConnection, sql: str) -> list[Any]:
    return [row[0] for row in cursor.execute(sql).fetchall()]


__all__ = ["Mode", "Plan", "RefreshConfig", "RefreshError", "Stale", "pace", "plan"]
