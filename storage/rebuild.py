"""Bringing a table up to date whose rows are a function of a whole set: curation, pair selection, evaluation.

Such a table is computed as a whole and cheaply; here only what differs from the rows that are there is
written, in one transaction, so that history, data version and downstream rows see just the change.
"""

# ruff: noqa: S608 (SQL names come from Table, which takes plain identifiers only; values are parameters)

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from storage.changes import commits_after
from storage.content import content_json, noted_version
from storage.ids import content_id
from storage.lake import Lake, Transaction, checked_rows
from storage.recipe import Recipe, remember, stamped
from storage.scope import EVERYTHING, Scope, note_refresh, scope_of
from storage.tables import RECIPES, Table, quoted


@dataclass(frozen=True)
class Report:
    """What a refresh or rebuild did. total: rows in the table now. new: rows that were not there. stale: rows
    that took the place of others. reused: rows left as they were. removed: rows taken away. failed: rows that
    failed this time. given_up: inputs that will not be tried again. seconds: wall time of computing and
    committing. snapshot: id of the lake's snapshot that has all this."""

    total: int
    new: int
    stale: int
    reused: int
    removed: int
    failed: int
    given_up: int
    seconds: float
    rows_per_second: float | None
    data_version: str
    snapshot: int

    @property
    def changed(self) -> bool:
        """Whether any row of the table was written or removed."""
        return bool(self.new or self.stale or self.removed)


Rows: TypeAlias = pa.Table | Callable[[Scope], pa.Table]


def rebuild(
    lake: Lake,
    table: Table,
    rows: Rows,
    recipe: Recipe,
    *,
    run_id: str,
    reads: Sequence[Table] = (),
    by_query: bool = False,
) -> Report:
    """Make the table equal to `rows`, which have its own columns (and input_id if they like, else the key).

    A row whose content is the same is left alone, with the recipe and run that first made it so. LakeError
    for rows that do not fit the table or have the same key.

    Where `rows` is a function and `reads` names every table that it reads, it is called only if one of them, the table
    or the recipe has changed since the last time. `by_query`: the rows of a query depend on that query's rows alone in
    each of those tables; then the function may be asked for the rows of some queries (see Scope.narrowed), and rows of
    others stay as they are.
    """
    started = time.monotonic()
    lake.create(table, RECIPES)
    mark, asked = uuid.uuid4().hex, content_id(*(table.qualified for table in reads))
    with lake.reading() as cursor:
        reader = Transaction(cursor)
        saw, scope = reader.snapshot(), EVERYTHING
        if reads:
            scope = scope_of(reader, table, [read.qualified for read in reads], recipe, asked, by_query=by_query)
    if scope.nothing:
        return _report(lake, table, started, new=0, replaced=0, removed=0)
    given = rows(scope) if callable(rows) else rows
    if "input_id" not in given.column_names and table.key in given.column_names:
        given = given.append_column("input_id", given[table.key])
    incoming = checked_rows(table, stamped(given, recipe.id, run_id))
    changes = _changes(lake, table, incoming, scope)
    if changes.num_rows:
        with lake.write({"run_id": run_id, "asset": table.label, "recipe": recipe.id, "refresh": mark}) as transaction:
            # Where another run has written since, what differs is what differs now, else two sets would be mixed.
            commits = commits_after(transaction, saw)
            if commits is None or any(table.qualified in commit.tables for commit in commits):
                changes = _changes(transaction, table, incoming, scope)
            remember(transaction, recipe)
            transaction.delete(table, changes.filter(pc.invert(changes["new"]))["key"])
            transaction.execute(
                f"INSERT INTO {table.qualified} BY NAME "
                f"FROM incoming SEMI JOIN changes ON incoming.{quoted(table.key)} = changes.key",
                incoming=incoming,
                changes=changes,
            )
    if reads:
        note_refresh(lake, table, recipe, asked, saw=saw, mark=mark)
    new, removed = (pc.sum(changes[name]).as_py() or 0 for name in ("new", "gone"))
    return _report(lake, table, started, new=new, replaced=changes.num_rows - new - removed, removed=removed)


def _report(lake: Lake, table: Table, started: float, *, new: int, replaced: int, removed: int) -> Report:
    seconds, total = time.monotonic() - started, lake.count(table)
    return Report(
        total=total,
        new=new,
        stale=replaced,
        reused=total - new - replaced,
        removed=removed,
        failed=0,
        given_up=0,
        seconds=seconds,
        rows_per_second=total / seconds if seconds > 0 else None,
        data_version=noted_version(lake, table),
        snapshot=lake.snapshot(),
    )


def _changes(reader: Lake | Transaction, table: Table, incoming: pa.Table, scope: Scope) -> pa.Table:
    """(key, new, gone) of the rows that differ from those that are there."""
    key = quoted(table.key)
    relations = {"incoming": incoming} | ({} if scope.queries is None else {"scope": scope.queries})
    there = f"(SELECT {key}, {content_json(table)} AS content FROM {scope.rows_of(table.qualified)})"
    return reader.query(
        f"SELECT coalesce(given.{key}, there.{key}) AS key, "
        f"there.{key} IS NULL AS new, given.{key} IS NULL AS gone "
        f"FROM (SELECT {key}, {content_json(table)} AS content FROM incoming) AS given "
        f"FULL JOIN {there} AS there ON given.{key} = there.{key} "
        "WHERE given.content IS DISTINCT FROM there.content",
        **relations,
    )
