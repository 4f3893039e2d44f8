"""Bringing a table up to date whose rows are a function of a whole set: curation, pair selection, evaluation.

Such a table is computed as a whole and cheaply; here only what differs from the rows that are there is
written, in one transaction, so that history, data version and downstream rows see just the change.
"""

# ruff: noqa: S608 (SQL names come from Table, which takes plain identifiers only; values are parameters)

from __future__ import annotations

import time
from dataclasses import dataclass

import pyarrow as pa

from storage.content import content_json, data_version
from storage.lake import Lake, Transaction, checked_rows
from storage.recipe import Recipe, remember, stamped
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


def rebuild(lake: Lake, table: Table, rows: pa.Table, recipe: Recipe, *, run_id: str) -> Report:
    """Make the table equal to `rows`, which have its own columns (and input_id if they like, else the key).

    A row whose content is the same is left alone, with the recipe and run that first made it so. LakeError
    for rows that do not fit the table or have the same key.
    """
    started = time.monotonic()
    lake.create(table, RECIPES)
    if "input_id" not in rows.column_names and table.key in rows.column_names:
        rows = rows.append_column("input_id", rows[table.key])
    incoming = checked_rows(table, stamped(rows, recipe.id, run_id))
    changes = _changes(lake, table, incoming)
    new = replaced = removed = 0
    if changes.num_rows:
        with lake.write({"run_id": run_id, "asset": table.label, "recipe": recipe.id}) as transaction:
            # Another run may have written since: what differs is what differs now, else two sets would be mixed.
            changes = _changes(transaction, table, incoming)
            remember(transaction, recipe)
            transaction.delete(table, changes["key"])
            transaction.execute(
                f"INSERT INTO {table.qualified} BY NAME "
                f"FROM incoming SEMI JOIN changes ON incoming.{quoted(table.key)} = changes.key",
                incoming=incoming,
                changes=changes,
            )
        new = int(changes["new"].to_pylist().count(True))
        removed = int(changes["gone"].to_pylist().count(True))
        replaced = changes.num_rows - new - removed
    seconds = time.monotonic() - started
    return Report(
        total=incoming.num_rows,
        new=new,
        stale=replaced,
        reused=incoming.num_rows - new - replaced,
        removed=removed,
        failed=0,
        given_up=0,
        seconds=seconds,
        rows_per_second=incoming.num_rows / seconds if seconds > 0 else None,
        data_version=data_version(lake, table),
        snapshot=lake.snapshot(),
    )


def _changes(reader: Lake | Transaction, table: Table, incoming: pa.Table) -> pa.Table:
    """(key, new, gone) of the rows that differ from those that are there."""
    name, key = table.qualified, quoted(table.key)
    there = f"(SELECT {key}, {content_json(table)} AS content FROM {name})"
    return reader.query(
        f"SELECT coalesce(given.{key}, there.{key}) AS key, "
        f"there.{key} IS NULL AS new, given.{key} IS NULL AS gone "
        f"FROM (SELECT {key}, {content_json(table)} AS content FROM incoming) AS given "
        f"FULL JOIN {there} AS there ON given.{key} = there.{key} "
        "WHERE given.content IS DISTINCT FROM there.content",
        incoming=incoming,
    )
