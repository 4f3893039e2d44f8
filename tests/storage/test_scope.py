"""What a refresh need not look at: after any history, a look at the changes alone finds what a look at all finds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.content import data_version, noted_version
from storage.lake import Lake
from storage.maintenance import Retention, maintain
from storage.recipe import Recipe
from storage.refresh import BatchFunction, BatchResult, Failure, Mode, Plan, RefreshConfig, plan, rebuild, refresh
from storage.scope import Scope, read_narrowed
from storage.tables import QUERIES, TEXT, WHOLE, Column, Table

A, B = Recipe({"model": "a"}), Recipe({"model": "b"})
EXAMPLES = int(os.environ.get("VPO_TEST_EXAMPLES", "3"))  # raise it when changing storage/scope.py
_numbers = count()


@dataclass(frozen=True)
class Tables:
    """Two tables that are read, one made row by row from their join, one as a whole."""

    left: Table
    right: Table
    rows: Table
    whole: Table

    @property
    def sql(self) -> str:
        return (
            "SELECT content_id([l.thing_id, r.thing_id, l.word, r.word]) AS input_id, l.query_id, "
            "l.word || r.word AS word "
            f"FROM {self.left.qualified} AS l JOIN {self.right.qualified} AS r USING (query_id)"
        )


def new_tables() -> Tables:
    number = next(_numbers)

    def table(name: str, *, lineage: bool) -> Table:
        columns = (
            Column("thing_id", TEXT, "Key.", nullable=False),
            Column("query_id", TEXT, "The query.", nullable=False),
            Column("word", TEXT, "Content."),
            Column("took", WHOLE, "Differs every time.", measured=True),
        )
        return Table(f"{name}_{number}", "thing_id", columns, "Made for tests.", lineage=lineage)

    return Tables(*(table(name, lineage=made) for name, made in (("l", 0), ("r", 0), ("rows", 1), ("whole", 1))))


def put(lake: Lake, table: Table, rows: dict[tuple[str, int], str]) -> None:
    entries = [
        {"thing_id": f"{query}{k}", "query_id": query, "word": word, "took": next(_numbers)}
        for (query, k), word in rows.items()
    ]
    with lake.write({"asset": table.label}) as transaction:
        transaction.upsert(table, pa.Table.from_pylist(entries, schema=table.arrow_schema))


def bring(lake: Lake, tables: Tables, recipe: Recipe, config: RefreshConfig, bad: frozenset[str] = frozenset()) -> None:
    def make(batch: pa.Table) -> BatchResult:
        rows = [row for row in batch.to_pylist() if row["word"] not in bad]
        failed = [Failure(row["input_id"], "bad") for row in batch.to_pylist() if row["word"] in bad]
        made = {
            "thing_id": [row["input_id"] + str(recipe.parts["model"]) for row in rows],
            "query_id": [row["query_id"] for row in rows],
            "word": [row["word"] for row in rows],
            "took": [next(_numbers) for _ in rows],
            "input_id": [row["input_id"] for row in rows],
        }
        schema = pa.schema([(name, pa.int64() if name == "took" else pa.string()) for name in made])
        return BatchResult(pa.table(made, schema=schema), failed)

    refresh(lake, tables.rows, tables.sql, recipe, make, config, run_id=f"run {next(_numbers)}", by_query=True)


def words_of_queries(lake: Lake, tables: Tables) -> Callable[[Scope], pa.Table]:
    def rows(scope: Scope) -> pa.Table:
        sql = (
            "SELECT query_id AS thing_id, query_id, string_agg(word, ' ' ORDER BY thing_id) AS word, "
            "NULL::BIGINT AS took "
            f"FROM {tables.left.qualified} GROUP BY query_id"
        )
        return read_narrowed(lake, sql, [tables.left], scope)

    return rows


def same_plans(lake: Lake, tables: Tables, recipe: Recipe, config: RefreshConfig) -> Plan:
    """The plan by changes, which is the plan over all rows."""
    narrow = plan(lake, tables.rows, tables.sql, recipe, config, by_query=True)
    wide = plan(lake, tables.rows, lake.query(tables.sql), recipe, config)
    for name in ("new", "stale", "reused", "orphaned", "failed", "given_up", "changed", "stale_by", "quarantined"):
        assert getattr(narrow, name) == getattr(wide, name), name
    assert narrow.todo["input_id"].to_pylist() == wide.todo["input_id"].to_pylist()
    assert sorted(narrow.doomed.to_pylist(), key=str) == sorted(wide.doomed.to_pylist(), key=str)
    return narrow


def same_contents(lake: Lake, tables: Tables) -> None:
    """The hashes that went on are those of the whole tables; and so is the table that is rebuilt by query."""
    for table in (tables.left, tables.rows, tables.whole):
        assert data_version(lake, table) == data_version(lake, table, lake.snapshot())
        if next(_numbers) % 2:
            assert noted_version(lake, table) == data_version(lake, table, lake.snapshot())


QUERY = st.sampled_from("pqrstuvw")
ROWS = st.dictionaries(st.tuples(QUERY, st.integers(0, 1)), st.sampled_from("xyz"), min_size=1, max_size=5)
EVENT = st.one_of(
    st.tuples(st.just("left"), ROWS),
    st.tuples(st.just("right"), ROWS),
    st.tuples(st.just("gone"), QUERY),
    st.tuples(st.just("refresh"), st.sampled_from([A, A, A, B])),
    st.tuples(st.just("refresh"), st.sampled_from([A, A, A, B])),
    st.tuples(st.just("failing"), st.frozensets(st.sampled_from(["xx", "xy", "yz"]))),
    st.tuples(st.just("limited"), st.integers(0, 2)),
    st.tuples(st.just("append"), st.sampled_from([A, B])),
    st.tuples(st.just("full"), st.just(A)),
    st.tuples(st.just("damage"), QUERY),
    st.tuples(st.just("rebuild"), st.sampled_from([A, B])),
    st.tuples(st.just("maintain"), st.booleans()),
)
LENIENT = RefreshConfig(max_failure_ratio=1.0, max_attempts=1000, batch_size=3)


def happen(lake: Lake, tables: Tables, what: str, given: object) -> None:
    match what, given:
        case "left" | "right", dict():
            put(lake, tables.left if what == "left" else tables.right, given)
        case "gone" | "damage", str():
            table = tables.left if what == "gone" else tables.rows
            with lake.write({"asset": table.label}) as transaction:
                transaction.execute(f"DELETE FROM {table.qualified} WHERE query_id = ?", [given])
        case "refresh", Recipe():
            bring(lake, tables, given, LENIENT)
        case "failing", frozenset():
            bring(lake, tables, A, LENIENT, given)
        case "limited", int():
            bring(lake, tables, A, RefreshConfig(limit=given))
        case "append", Recipe():
            bring(lake, tables, given, RefreshConfig(mode=Mode.APPEND))
        case "full", Recipe():
            bring(lake, tables, given, RefreshConfig(mode=Mode.FULL))
        case "rebuild", Recipe():
            rows = words_of_queries(lake, tables)
            rebuild(lake, tables.whole, rows, given, run_id="run", reads=[tables.left], by_query=True)
            found = lake.query(f"SELECT thing_id, word FROM {tables.whole.qualified} ORDER BY thing_id").to_pylist()
            wanted = lake.query("SELECT thing_id, word FROM wanted ORDER BY thing_id", wanted=rows(Scope(None)))
            assert found == wanted.to_pylist()
        case "maintain", bool():
            days = 0.0 if given else 30.0
            maintain(lake, Retention(keep_days=days, keep_snapshots_min=1, grace_hours=0.0), needed=[])
        case _:
            raise AssertionError(what)


@pytest.mark.slow
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(events=st.lists(EVENT, min_size=3, max_size=7))
def test_a_look_at_the_changes_finds_what_a_look_at_all_finds(lake: Lake, events: list[tuple[str, object]]) -> None:
    tables = new_tables()
    lake.create(tables.left, tables.right, tables.rows, tables.whole)
    put(lake, tables.left, {(query, k): "x" for query in "pqrstuvw" for k in range(2)})
    put(lake, tables.right, {(query, 0): "x" for query in "pqrstuvw"})
    bring(lake, tables, A, LENIENT)
    for what, given_ in events:
        happen(lake, tables, what, given_)
        same_plans(lake, tables, A, LENIENT)
        same_contents(lake, tables)
    same_plans(lake, tables, B, LENIENT)
    bring(lake, tables, A, RefreshConfig(max_attempts=1000))
    assert same_plans(lake, tables, A, LENIENT).todo.num_rows == 0


@pytest.fixture
def settled(lake: Lake) -> Iterator[Tables]:
    """Tables of twenty queries that are up to date."""
    tables = new_tables()
    lake.create(tables.left, tables.right, tables.rows, tables.whole)
    put(lake, tables.left, {(f"q{n}", 0): "x" for n in range(20)})
    put(lake, tables.right, {(f"q{n}", 0): "y" for n in range(20)})
    bring(lake, tables, A, LENIENT)
    yield tables


def looked_at(lake: Lake, tables: Tables) -> int | None:
    """How many queries a rebuild from the left table is asked for; None for all."""
    asked: list[Scope] = []

    def rows(scope: Scope) -> pa.Table:
        asked.append(scope)
        return words_of_queries(lake, tables)(scope)

    rebuild(lake, tables.whole, rows, A, run_id="run", reads=[tables.left], by_query=True)
    (scope,) = asked or [Scope(pa.table({"query_id": []}))]
    return None if scope.queries is None else scope.queries.num_rows


def test_only_what_changed_is_looked_at(lake: Lake, settled: Tables) -> None:
    assert looked_at(lake, settled) is None
    assert looked_at(lake, settled) == 0
    put(lake, settled.left, {("q3", 1): "z", ("new", 0): "z"})
    assert looked_at(lake, settled) == 2
    put(lake, settled.right, {("q4", 1): "z"})
    assert looked_at(lake, settled) == 0


def test_a_refresh_without_change_writes_nothing(lake: Lake, settled: Tables) -> None:
    before = lake.snapshot()
    assert plan(lake, settled.rows, settled.sql, A, LENIENT).untouched
    bring(lake, settled, A, LENIENT)
    assert lake.snapshot() == before


def test_another_run_s_row_is_not_taken_for_ours(lake: Lake, settled: Tables) -> None:
    """A writer that does not keep to any refresh's mark, while a refresh is at work."""
    put(lake, settled.left, {("q1", 1): "z"})

    def interrupting(function: BatchFunction, batches: Iterable[pa.Table]) -> Iterator[tuple[pa.Table, BatchResult]]:
        for batch in batches:
            result = function(batch)
            with lake.write({"asset": "somebody else"}) as transaction:
                transaction.execute(f"DELETE FROM {settled.rows.qualified} WHERE query_id = 'q7'")
            yield batch, result

    def make(batch: pa.Table) -> BatchResult:
        took = pa.nulls(batch.num_rows, pa.int64())
        return BatchResult(batch.append_column("thing_id", batch["input_id"]).append_column("took", took))

    refresh(lake, settled.rows, settled.sql, A, make, LENIENT, run_id="run", mapper=interrupting, by_query=True)
    assert same_plans(lake, settled, A, LENIENT).new == 1


def test_inputs_whose_tables_cannot_be_narrowed_are_looked_at_as_a_whole(lake: Lake, settled: Tables) -> None:
    other_spelling = settled.sql.replace('"lake"."main".', "lake.main.")
    refresh_config = RefreshConfig(max_attempts=1000)
    assert plan(lake, settled.rows, other_spelling, A, refresh_config, by_query=True).reused == 20
    put(lake, settled.left, {("q1", 1): "z"})
    assert plan(lake, settled.rows, other_spelling, A, refresh_config, by_query=True).new == 1


def test_a_column_that_came_later_gives_another_hash(lake: Lake) -> None:
    small = Table("grows", "query_id", QUERIES.columns[:2], "Grows.", lineage=False)
    large = Table("grows", "query_id", QUERIES.columns[:4], "Grows.", lineage=False)
    lake.create(small)
    with lake.write({"asset": "grows"}) as transaction:
        transaction.upsert(small, pa.table({"query_id": ["a"], "query": ["b"]}))
    before = noted_version(lake, small)
    lake.create(large)
    assert noted_version(lake, large) == data_version(lake, large, lake.snapshot()) != before


def test_files_that_were_written_anew_are_not_taken_for_new_rows(lake: Lake, settled: Tables) -> None:
    noted_version(lake, settled.left)
    looked_at(lake, settled)
    for query in ("q1", "q2", "q3", "q4", "q5", "q6"):
        happen(lake, settled, "gone", query)
    happen(lake, settled, "maintain", False)
    assert data_version(lake, settled.left) == data_version(lake, settled.left, lake.snapshot())
    assert looked_at(lake, settled) is None
