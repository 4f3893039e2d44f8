"""What a table contains, as one hash and as SQL to compare rows by.

Content is a table's own columns without lineage and measured values: what a reader of the table would see
change. Everything is computed in SQL, over the whole table, in a second or so per million short rows.
"""

# ruff: noqa: S608 (SQL names come from Table, which takes plain identifiers only; values are parameters)

from __future__ import annotations

from storage.ids import content_id
from storage.lake import Lake
from storage.tables import Table, quoted


def data_version(lake: Lake, table: Table, version: int | None = None) -> str:
    """A hash of the table's content, now or as of a snapshot, the same for the same rows in any order and on any
    machine.

    Lineage columns and measured values (times, durations) do not count. A table that has not been made yet
    has the version of an empty one.
    """
    if not lake.exists(table):
        return content_id("0", "0")
    # Keys are unique, so no two rows are equal and none cancel out in the exclusive or.
    rows = lake.query(
        "SELECT count(*)::VARCHAR AS n, "
        f"coalesce(bit_xor(md5_number({content_json(table)})), 0)::VARCHAR AS mixed "
        f"FROM {table.qualified}" + ("" if version is None else f" AT (VERSION => {int(version)})")
    ).to_pylist()[0]
    return content_id(rows["n"], rows["mixed"])


def content_json(table: Table) -> str:
    """SQL for one row's content as unambiguous text."""
    columns = ", ".join(f"{quoted(name)} := {quoted(name)}" for name in table.content_columns)
    return f"to_json(struct_pack({columns}))::VARCHAR"
