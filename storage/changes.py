"""What changed in the lake since a snapshot, from DuckLake's own record of changes.

Belongs here: which tables were written to, by whom, and which rows came or went. All of it costs what changed, however
large the tables are. Does not belong here: what follows from a change (storage/scope.py, storage/content.py).
"""

# ruff: noqa: S608 (SQL names come from Table or from the catalog and are quoted; values are parameters or numbers)

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from storage.lake import CATALOG, Lake, Transaction
from storage.tables import LAKE, quoted

_REWRITTEN = "rewrite_delete"
_WITHOUT_EFFECT = frozenset({"inline_flush", "compacted_table", "merge_adjacent", _REWRITTEN})
"""Changes of where rows lie, not of what they are."""


@dataclass(frozen=True)
class Commit:
    """One commit: its snapshot, its message as JSON, the qualified names of the tables it wrote to, and of those whose
    files it wrote anew without their deleted rows."""

    snapshot: int
    text: str
    tables: frozenset[str]
    rewritten: frozenset[str]

    @property
    def message(self) -> dict[str, Any]:
        """What `Lake.write` was given."""
        message: dict[str, Any] = json.loads(self.text)
        return message


def commits_after(reader: Lake | Transaction, snapshot: int) -> list[Commit] | None:
    """Every commit after a snapshot, the oldest first; None if maintenance has let one of them or the snapshot itself
    go, so that what changed cannot be told any more."""
    rows = reader.query(
        "SELECT snapshot_id AS id, changes_made AS changes, commit_extra_info AS message "
        f"FROM {CATALOG}.ducklake_snapshot LEFT JOIN {CATALOG}.ducklake_snapshot_changes USING (snapshot_id) "
        "WHERE snapshot_id >= ? ORDER BY snapshot_id",
        [snapshot],
    ).to_pylist()
    if [row["id"] for row in rows] != list(range(snapshot, snapshot + len(rows))) or not rows:
        return None
    if len(rows) == 1:
        return []
    names = _table_names(reader)
    return [_commit(row["id"], row["message"] or "{}", row["changes"] or "", names) for row in rows[1:]]


def changed_rows(name: str, columns: str, commits: Sequence[Commit]) -> tuple[str, str] | None:
    """Two SELECTs of so many columns of a table (qualified name): the rows that came with these commits, each of which
    follows the one before, and those that went. A row that took the place of another is in both. None if one of the
    commits wrote the table's files anew: DuckLake then gives every row of theirs for one that came."""
    if any(name in commit.rewritten for commit in commits):
        return None
    lake, schema, table = (part.strip('"').replace("'", "''") for part in name.split("."))
    where = f"'{lake}', '{schema}', '{table}', {commits[0].snapshot}, {commits[-1].snapshot}"
    return (
        f"SELECT {columns} FROM ducklake_table_insertions({where})",
        f"SELECT {columns} FROM ducklake_table_deletions({where})",
    )


def _table_names(reader: Lake | Transaction) -> dict[str, str]:
    rows = reader.query(
        f"SELECT table_id::VARCHAR AS id, schema_name AS schema, table_name AS name FROM {CATALOG}.ducklake_table "
        f"JOIN {CATALOG}.ducklake_schema AS s USING (schema_id)"
    ).to_pylist()
    return {row["id"]: ".".join(quoted(part) for part in (LAKE, row["schema"], row["name"])) for row in rows}


def _commit(snapshot: int, message: str, changes: str, names: dict[str, str]) -> Commit:
    """From ``inserted_into_table:7,deleted_from_table:7``. Names of made tables, which stand there in quotes, are no
    ids and are passed over: what is in a new table was inserted."""
    parts = [
        (kind, names[id_]) for kind, _, id_ in (part.rpartition(":") for part in changes.split(",")) if id_ in names
    ]
    return Commit(
        snapshot,
        message,
        tables=frozenset(name for kind, name in parts if kind not in _WITHOUT_EFFECT),
        rewritten=frozenset(name for kind, name in parts if kind == _REWRITTEN),
    )
