"""What a table contains, as one hash and as SQL to compare rows by.

Content is a table's own columns without lineage and measured values: what a reader of the table would see
change. The hash is an exclusive or over rows, so it goes on from the last one noted with the rows that
came and went since; only where that cannot be told is it computed over the whole table, in SQL, in a second or so
per million short rows.
"""

# ruff: noqa: S608 (SQL names come from Table, which takes plain identifiers only; values are parameters)

from __future__ import annotations

from dataclasses import dataclass

from storage.changes import changed_rows, commits_after
from storage.ids import content_id
from storage.lake import Lake, Transaction
from storage.notes import read_note, write_note
from storage.tables import Table, quoted

_KIND = "content"


@dataclass(frozen=True)
class Content:
    """What a table contained at a snapshot: its number of rows, and the exclusive or of their hashes."""

    snapshot: int
    rows: int
    mixed: int

    @property
    def version(self) -> str:
        """The hash, the same for the same rows in any order and on any machine."""
        return content_id(str(self.rows), str(self.mixed))


def data_version(lake: Lake, table: Table, version: int | None = None) -> str:
    """A hash of the table's content, now or as of a snapshot, the same for the same rows in any order and on any
    machine.

    Lineage columns and measured values (times, durations) do not count. A table that has not been made yet
    has the version of an empty one.
    """
    if not lake.exists(table):
        return Content(0, 0, 0).version
    if version is not None:
        return _counted(lake, table, f"{table.qualified} AT (VERSION => {int(version)})", version).version
    with lake.reading() as cursor:
        return content_now(Transaction(cursor), table).version


def content_now(reader: Transaction, table: Table) -> Content:
    """What a table contains as the transaction sees it."""
    return _content_since(reader, table, _noted(reader, table))


def noted_version(lake: Lake, table: Table) -> str:
    """The hash of the table's content now; noted, if the table has changed since the last time."""
    lake.create(table)
    with lake.reading() as cursor:
        reader = Transaction(cursor)
        known = _noted(reader, table)
        content = _content_since(reader, table, known)
    if known is None or content.version != known.version:
        counted = {"snapshot": content.snapshot, "rows": content.rows, "mixed": str(content.mixed)}
        write_note(lake, _KIND, table.label, {"columns": _columns(table), **counted})
    return content.version


def _content_since(reader: Transaction, table: Table, known: Content | None) -> Content:
    now = reader.snapshot()
    commits = None if known is None else commits_after(reader, known.snapshot)
    if known is None or commits is None:
        return _counted(reader, table, table.qualified, now)
    if not any(table.qualified in commit.tables for commit in commits):
        return Content(now, known.rows, known.mixed)
    hashes = f"md5_number({content_json(table)}) AS hash"
    changed = changed_rows(table.qualified, hashes, commits)
    if changed is None:
        return _counted(reader, table, table.qualified, now)
    came, went = (_counted(reader, table, "", now, rows) for rows in changed)
    return Content(now, known.rows + came.rows - went.rows, known.mixed ^ came.mixed ^ went.mixed)


def _noted(reader: Transaction, table: Table) -> Content | None:
    note = read_note(reader, _KIND, table.label)
    if note is None or note["columns"] != _columns(table):
        return None
    return Content(note["snapshot"], note["rows"], int(note["mixed"]))


def _counted(reader: Lake | Transaction, table: Table, source: str, snapshot: int, hashes: str = "") -> Content:
    """Of the rows of a table (or of a SELECT of their hashes), all of them."""
    hashes = hashes or f"SELECT md5_number({content_json(table)}) AS hash FROM {source}"
    # Keys are unique, so no two rows are equal and none cancel out in the exclusive or.
    found = reader.query(
        f"SELECT count(*) AS rows, coalesce(bit_xor(hash), 0)::VARCHAR AS mixed FROM ({hashes})"
    ).to_pylist()[0]
    return Content(snapshot, found["rows"], int(found["mixed"]))


def _columns(table: Table) -> str:
    return content_id(*table.content_columns)


def content_json(table: Table) -> str:
    """SQL for one row's content as unambiguous text."""
    columns = ", ".join(f"{quoted(name)} := {quoted(name)}" for name in table.content_columns)
    return f"to_json(struct_pack({columns}))::VARCHAR"
