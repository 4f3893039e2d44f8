"""Which files hold which queries, and letting go of those that no file holds any more.

Belongs here: the record of files (`query_files`) and of what they hold (`query_lines`), and the removal of queries
whose last file is gone. Does not belong here: reading files (storage/query_files.py) and taking them in
(storage/ingestion.py).

A query is live while the content that some file has now holds it. Content is named by its hash and by how it was read,
not by a file name: a file that is moved or copied holds what it held. Rows of a lake from before this record, whose
`source_sha256` has no lines here, stay as they are.
"""

# ruff: noqa: S608 (SQL names come from Table, which takes plain identifiers only; values are parameters)

from __future__ import annotations

import datetime
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage.ids import content_id
from storage.lake import Lake, Transaction
from storage.query_files import SCORES
from storage.tables import INGESTION_FAILURES, QUERY_FILES, QUERY_LINES, RAW_PROMPTS, TAKEN_DOWN, quoted

TABLES = (RAW_PROMPTS, INGESTION_FAILURES, QUERY_FILES, QUERY_LINES, TAKEN_DOWN)
LONGEST_WAIT = 3600.0
"""Seconds for which one ingestion waits for another."""

_FILES, _LINES, _RAW = QUERY_FILES.qualified, QUERY_LINES.qualified, RAW_PROMPTS.qualified
_SCORES = ", ".join(SCORES)
_DEAD_LINES = f"(FROM {_LINES} ANTI JOIN (SELECT content FROM {_FILES}) USING (content))"


class Kind(StrEnum):
    """Where a file was named: in the profile, by lying in the inbox, by `vpo ingest`, or as a take-down file."""

    PROFILE = "profile"
    INBOX = "inbox"
    COMMAND = "command"
    TAKE_DOWN = "take_down"


@contextmanager
def one_at_a_time(lake: Lake) -> Iterator[None]:
    """Keeps other ingestions into this lake waiting: what one of them has half written, another must not clear away.
    The lock is free again when its holder dies."""
    with lake.locked("ingestion", LONGEST_WAIT):
        yield


def storable(name: str) -> str:
    """A file name that any table can hold: bytes that are not UTF-8 are written out."""
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")


def file_id(kind: Kind, name: str) -> str:
    """The key of a file; different names have different keys, whatever their bytes."""
    return content_id(kind, os.fsencode(name).decode("latin-1"))


def recorded_file(lake: Lake, kind: Kind, name: str) -> dict[str, Any] | None:
    """The row of a file, if it was ever taken in or refused."""
    if not lake.exists(QUERY_FILES):
        return None
    rows = lake.read(QUERY_FILES, where="file_id = ?", parameters=[file_id(kind, name)]).to_pylist()
    return rows[0] if rows else None


def recorded_files(lake: Lake, *kinds: Kind) -> list[dict[str, Any]]:
    """The rows of all files of these kinds, by path."""
    if not lake.exists(QUERY_FILES):
        return []
    rows = lake.read(QUERY_FILES, where="list_contains(?, kind)", parameters=[[str(kind) for kind in kinds]])
    found: list[dict[str, Any]] = rows.sort_by("path").to_pylist()
    return found


def record(transaction: Transaction, row: Mapping[str, Any]) -> None:
    """Write the row of one file; columns that are not given are empty."""
    complete = {column.name: row.get(column.name) for column in QUERY_FILES.columns}
    complete["at"] = row.get("at") or datetime.datetime.now(datetime.UTC)
    transaction.upsert(QUERY_FILES, pa.Table.from_pylist([complete], schema=QUERY_FILES.arrow_schema))


def other_file_with(lake: Lake, content: str) -> dict[str, Any] | None:
    """The row of some file that has this content."""
    rows = lake.read(QUERY_FILES, where="content = ?", parameters=[content]).sort_by("at").to_pylist()
    return rows[0] if rows else None


def refuse(lake: Lake, kind: Kind, name: str, sha256: str, error: str, state: os.stat_result, columns: str) -> None:
    """Remember that a file with this content cannot be read, so that it is not tried again before it changes. What
    was taken in of its earlier content stays."""
    source = storable(Path(name).name)
    lake.create(*TABLES)
    with one_at_a_time(lake), lake.write({"asset": QUERY_FILES.label, "text": f"refused {source}"}) as transaction:
        there = transaction.query(f"SELECT * FROM {_FILES} WHERE file_id = ?", [file_id(kind, name)]).to_pylist()
        row = there[0] if there else {"file_id": file_id(kind, name), "kind": str(kind), "path": storable(name)}
        changes = {"refused_sha256": sha256, "error": error, "refused_columns": columns}
        stamp = {"bytes": state.st_size, "modified_ns": state.st_mtime_ns}
        record(transaction, {"source": source, **row, **changes, **stamp})
        forget_failures(transaction, [row["refused_sha256"]] if row.get("refused_sha256") else [])
        record_failure(transaction, source, sha256, error)


def record_failure(transaction: Transaction, source: str, sha256: str, error: str) -> None:
    """Put a file that cannot be read, or not to its end, among the bad rows, as line 0."""
    failure = {
        "failure_id": content_id(sha256, "0"),
        "source": source,
        "source_sha256": sha256,
        "line": 0,
        "error": error,
        "excerpt": "",
        "last_at": datetime.datetime.now(datetime.UTC),
    }
    transaction.upsert(INGESTION_FAILURES, pa.Table.from_pylist([failure], schema=INGESTION_FAILURES.arrow_schema))


def let_go(lake: Lake, kind: Kind, keep: Collection[str]) -> int:
    """Forget the files of a kind that are not among the names to keep, and remove the queries that nothing else holds.
    One transaction. How many queries."""
    kept = {file_id(kind, name) for name in keep}
    lake.create(*TABLES)
    with one_at_a_time(lake):
        gone = [row for row in recorded_files(lake, kind) if row["file_id"] not in kept]
        if not gone and not has_dead_lines(lake):
            return 0
        with lake.write({"asset": RAW_PROMPTS.label, "text": "let go of files that are not named"}) as transaction:
            transaction.delete(QUERY_FILES, [row["file_id"] for row in gone])
            hashes = {row[name] for row in gone for name in ("sha256", "refused_sha256")}
            return clear_away(transaction, hashes - {None})


def has_dead_lines(lake: Lake) -> bool:
    """Whether there are lines of content that no file has: leftovers of an ingestion that was killed."""
    return bool(lake.query(f"SELECT 1 FROM {_DEAD_LINES} LIMIT 1").num_rows)


def clear_away(transaction: Transaction, let_go_of: Collection[str] = ()) -> int:
    """Remove the queries that no file holds any more; those that another file holds become that file's. How many.

    `let_go_of`: hashes of files that were let go of, whose bad rows go, too, if no other file has that content.
    """
    affected = transaction.query(
        f"SELECT query_id, source, source_sha256 FROM {_RAW} "
        f"SEMI JOIN (SELECT sha256 FROM {_LINES}) AS known ON source_sha256 = known.sha256 "
        f"WHERE query_id IN (SELECT query_id FROM {_DEAD_LINES}) OR (source, source_sha256) NOT IN "
        f"(SELECT (coalesce(source, ''), sha256) FROM {_FILES} WHERE sha256 IS NOT NULL)"
    )
    removed = 0
    if affected.num_rows:
        removed = transaction.execute(
            f"DELETE FROM {_RAW} WHERE query_id IN (SELECT query_id FROM affected ANTI JOIN (SELECT query_id "
            f"FROM {_LINES} SEMI JOIN (SELECT content FROM {_FILES}) USING (content)) USING (query_id))",
            affected=affected,
        )
        _hand_over(transaction, affected)
    dead = transaction.query(f"SELECT DISTINCT sha256 FROM {_DEAD_LINES}")["sha256"].to_pylist()
    transaction.execute(f"DELETE FROM {_LINES} WHERE content NOT IN (SELECT content FROM {_FILES} WHERE content > '')")
    forget_failures(transaction, {*dead, *let_go_of})
    return removed


def _hand_over(transaction: Transaction, affected: pa.Table) -> None:
    """Rows that their own source holds no more get the source, line and scores of the first file that holds them."""
    holding = transaction.query(
        f"SELECT l.query_id, f.source, l.sha256, l.line, {', '.join(f'l.{name}' for name in SCORES)}, f.at, f.file_id "
        f"FROM {_LINES} AS l JOIN {_FILES} AS f USING (content) "
        "WHERE l.query_id IN (SELECT query_id FROM affected)",
        affected=affected,
    )
    settings = ", ".join(f"{quoted(name)} = heir.{quoted(name)}" for name in SCORES)
    heirs = transaction.query(
        "SELECT holding.* FROM holding "
        "ANTI JOIN (SELECT a.query_id FROM affected AS a JOIN holding AS h ON a.query_id = h.query_id "
        "AND a.source = h.source AND a.source_sha256 = h.sha256) AS content_still ON "
        "holding.query_id = content_still.query_id "
        "QUALIFY row_number() OVER (PARTITION BY holding.query_id ORDER BY holding.at, file_id) = 1",
        affected=affected,
        holding=holding,
    )
    if heirs.num_rows:
        transaction.execute(
            f"UPDATE {_RAW} AS r SET source = heir.source, source_sha256 = heir.sha256, source_line = heir.line, "
            f"{settings} FROM heirs AS heir WHERE r.query_id = heir.query_id",
            heirs=heirs,
        )


def forget_failures(transaction: Transaction, hashes: Collection[str]) -> None:
    """Drop the bad rows of files that are gone, by their hashes; those of files that are there stay."""
    if hashes:
        transaction.execute(
            f"DELETE FROM {INGESTION_FAILURES.qualified} WHERE list_contains(?, source_sha256) AND source_sha256 "
            f"NOT IN (SELECT unnest([coalesce(sha256, ''), coalesce(refused_sha256, '')]) FROM {_FILES})",
            [list(hashes)],
        )


def files_to_read_again(lake: Lake) -> list[dict[str, Any]]:
    """Files that hold queries which are neither among the raw prompts nor taken down: such that were."""
    rows = lake.query(
        f"SELECT f.* FROM {_FILES} AS f SEMI JOIN (SELECT content FROM {_LINES} "
        f"ANTI JOIN (SELECT query_id FROM {_RAW}) AS r USING (query_id) "
        f"ANTI JOIN (SELECT query_id FROM {TAKEN_DOWN.qualified}) AS t USING (query_id)) AS l USING (content) "
        "ORDER BY f.at"
    )
    found: list[dict[str, Any]] = rows.to_pylist()
    return found
