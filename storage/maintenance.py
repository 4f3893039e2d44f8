"""Retention and maintenance of a lake: old snapshots, small and half-deleted files, files nobody needs, bookkeeping.

Here: what is done to the lake itself. Which snapshots are needed by others (checkpoints) is told by the caller, and so
is everything outside the lake's folder. Each step holds the write lock for one statement only, does no more than what
is left to do, and may be killed at any moment: run again, it goes on.
"""

# ruff: noqa: S608 (SQL names come from the catalog and are quoted; values are parameters or numbers)

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.lake import Lake, LakeError
from storage.retention_log import note_expired
from storage.tables import FAILURES, LAKE, RECIPES, THROUGHPUT, quoted

SNAPSHOTS_AT_ONCE = 500
THROUGHPUT_KEPT = 50
DELETED_SHARE = 0.25
"""A file of which so many rows are deleted is written anew without them."""


@dataclass(frozen=True)
class Retention:
    """What is kept. keep_days: snapshots younger than that. keep_snapshots_min: so many of the latest, however old,
    so that a clock gone wrong takes nothing. grace_hours: files younger than that, whose row may be about to be
    committed, or which a reader may still have open."""

    keep_days: float = 30.0
    keep_snapshots_min: int = 100
    grace_hours: float = 24.0


@dataclass(frozen=True)
class LakeReport:
    """What maintenance did to a lake (or would do). expired: snapshots taken away. spared: old ones that are needed.
    kept: snapshots that are left. files_removed: data files no snapshot refers to. recipes, throughput: rows of
    bookkeeping removed. bytes and files before and after. problems: what could not be done."""

    expired: int
    spared: int
    kept: int
    files_removed: int
    recipes: int
    throughput: int
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int
    problems: tuple[str, ...] = ()


def maintain(lake: Lake, retention: Retention, needed: Collection[int], *, dry_run: bool = False) -> LakeReport:
    """Maintain the lake; `needed` snapshots stay, whatever their age. `dry_run`: say only what would be done.

    Raises LakeError if the lake cannot be read or another process holds its write lock for too long.
    """
    files_before, bytes_before = lake.size()
    recipes, throughput = _tidy_bookkeeping(lake, dry_run)
    old = _old_snapshots(lake, retention)
    doomed = [snapshot for snapshot in old if snapshot not in set(needed)]
    problems: list[str] = []
    if not dry_run:
        _expire(lake, doomed)
        problems = _compact(lake)
    removed = _remove_files(lake, retention, dry_run)
    files_after, bytes_after = lake.size()
    kept = int(lake.query(f"SELECT count(*) AS n FROM {LAKE}.snapshots()")["n"][0].as_py())
    return LakeReport(
        expired=len(doomed),
        spared=len(old) - len(doomed),
        kept=kept - len(doomed) if dry_run else kept,
        files_removed=removed,
        recipes=recipes,
        throughput=throughput,
        files_before=files_before,
        files_after=files_after,
        bytes_before=bytes_before,
        bytes_after=bytes_after,
        problems=tuple(problems),
    )


def size_of(folder: Path) -> tuple[int, int]:
    """Number and bytes of all files below a folder, those that vanish meanwhile left out."""
    sizes = []
    for file in folder.rglob("*"):
        try:
            if file.is_file():
                sizes.append(file.stat().st_size)
        except FileNotFoundError:
            continue
    return len(sizes), sum(sizes)


def _old_snapshots(lake: Lake, retention: Retention) -> list[int]:
    before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=retention.keep_days)
    rows = lake.query(
        "SELECT snapshot_id AS id FROM (SELECT snapshot_id, snapshot_time, "
        f"row_number() OVER (ORDER BY snapshot_id DESC) AS place FROM {LAKE}.snapshots()) "
        "WHERE place > ? AND snapshot_time < ? ORDER BY id",
        [max(1, retention.keep_snapshots_min), before],
    )
    return [int(id_) for id_ in rows["id"].to_pylist()]


def _expire(lake: Lake, snapshots: Sequence[int]) -> None:
    for start in range(0, len(snapshots), SNAPSHOTS_AT_ONCE):
        some = [int(snapshot) for snapshot in snapshots[start : start + SNAPSHOTS_AT_ONCE]]
        note_expired(lake.folder, some)  # first: what is gone without a word cannot be explained later
        lake.call(f"CALL ducklake_expire_snapshots('{LAKE}', versions => {some})")


def _tables(lake: Lake, having: str) -> list[tuple[str, str]]:
    """(schema, name) of the lake's tables that have a column of that name."""
    rows = lake.query(
        "SELECT DISTINCT schema_name AS schema, table_name AS name FROM duckdb_columns() "
        "WHERE database_name = ? AND column_name = ? AND NOT internal ORDER BY ALL",
        [LAKE, having],
    )
    return [(row["schema"], row["name"]) for row in rows.to_pylist()]


def values_in_use(lake: Lake, column: str) -> set[str]:
    """Every value that the present rows of any table have in the column of that name."""
    found: set[str] = set()
    for schema, name in _tables(lake, column):
        table = f"{quoted(LAKE)}.{quoted(schema)}.{quoted(name)}"
        found |= set(lake.query(f"SELECT DISTINCT {quoted(column)} AS value FROM {table}")["value"].to_pylist())
    return found - {None}


def _compact(lake: Lake) -> list[str]:
    """Write half-deleted files anew and merge small ones, table by table; what was read before stays readable."""
    problems = []
    rows = lake.query(
        "SELECT schema_name AS schema, table_name AS name FROM duckdb_tables() WHERE database_name = ? ORDER BY ALL",
        [LAKE],
    )
    for row in rows.to_pylist():
        for statement in (
            f"CALL ducklake_rewrite_data_files('{LAKE}', ?, schema => ?, delete_threshold => {DELETED_SHARE})",
            f"CALL ducklake_merge_adjacent_files('{LAKE}', ?, schema => ?)",
        ):
            try:
                lake.call(statement, [row["name"], row["schema"]])
            except LakeError as error:
                problems.append(f"table {row['schema']}.{row['name']}: {str(error).splitlines()[0]}")
    return problems


def _remove_files(lake: Lake, retention: Retention, dry_run: bool) -> int:
    """Files that no kept snapshot refers to, and files that a killed writer left. How many."""
    before = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=retention.grace_hours)
    options = f"older_than => TIMESTAMPTZ '{before.isoformat()}', dry_run => {str(dry_run).lower()}"
    return sum(
        len(lake.call(f"CALL {function}('{LAKE}', {options})"))
        for function in ("ducklake_cleanup_old_files", "ducklake_delete_orphaned_files")
    )


def _tidy_bookkeeping(lake: Lake, dry_run: bool) -> tuple[int, int]:
    """Rows removed: recipes of no row, and throughput older than the last ones of its table."""
    if not all(lake.exists(table) for table in (RECIPES, THROUGHPUT, FAILURES)):
        return 0, 0
    users = [
        f"SELECT recipe FROM {quoted(LAKE)}.{quoted(schema)}.{quoted(name)}"
        for schema, name in _tables(lake, "recipe")
        if (schema, name) != (RECIPES.schema, RECIPES.name)
    ]
    # A recipe and the first row or failure of it are committed together; the day is for clocks that disagree.
    unused = (
        f"SELECT recipe FROM {RECIPES.qualified} WHERE first_seen < now() - INTERVAL 1 DAY "
        f"AND recipe NOT IN ({' UNION ALL '.join(users)})"
    )
    old = (
        f"SELECT throughput_id FROM {THROUGHPUT.qualified} QUALIFY row_number() OVER "
        f"(PARTITION BY table_name ORDER BY {quoted('at')} DESC, throughput_id) > {THROUGHPUT_KEPT}"
    )
    found = [lake.query(f"SELECT count(*) AS n FROM ({sql})")["n"][0].as_py() for sql in (old, unused)]
    if dry_run or not any(found):
        return int(found[1]), int(found[0])
    with lake.write({"asset": "maintenance", "text": "tidy bookkeeping"}) as transaction:
        throughput = transaction.delete(THROUGHPUT, transaction.query(old)["throughput_id"])
        recipes = transaction.delete(RECIPES, transaction.query(unused)["recipe"])
    return recipes, throughput
