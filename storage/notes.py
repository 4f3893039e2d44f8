"""What a lake remembers for speed alone: a note for each kind of question and table, without history.

Belongs here: reading and writing notes. Does not belong here: what stands in them (storage/scope.py,
storage/content.py). A note is true as of the snapshot that it names, so whoever reads one asks what has changed since;
a lost one costs a look at everything, and nothing else.

Notes lie in the database of the catalog, and not in a table of the lake: they make no snapshot and no file, and a
catalog that is restored from a copy gets the notes that belong to its snapshots.
"""

# ruff: noqa: S608 (the name of the table is a constant; values are parameters)

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from storage.lake import NOTES, Lake, Transaction
from storage.lake_place import patiently


def read_note(reader: Transaction, kind: str, about: str) -> dict[str, Any] | None:
    """What was last written, if anything."""
    found = reader.query(f"SELECT note FROM {NOTES} WHERE kind = ? AND about = ?", [kind, about])["note"].to_pylist()
    note: dict[str, Any] | None = json.loads(found[0]) if found else None
    return note


def write_note(lake: Lake, kind: str, about: str, note: Mapping[str, Any]) -> None:
    """In place of what was there."""

    def write() -> None:
        with lake.beside() as transaction:
            transaction.execute(f"DELETE FROM {NOTES} WHERE kind = ? AND about = ?", [kind, about])
            transaction.execute(f"INSERT INTO {NOTES} VALUES (?, ?, ?)", [kind, about, json.dumps(note)])

    patiently(write, lake.place.patience)
