"""Taking query files into the lake: every distinct text once, every bad row in quarantine.

Here: how rows of a file become rows of `raw_prompts` and `ingestion_failures`, and how a file's new content takes the
place of its old one. How files are read is in `storage.query_files`; which file holds what, and the removal of what no
file holds, in `storage.query_sources`; which queries are worth keeping is for curation to say.

New content is written batch by batch, and counts from the last commit on: this one gives the file its new content and
removes the rows that only the old one held. A kill before it changes nothing that counts; what it leaves is cleared
away by the next ingestion.
"""

# ruff: noqa: S608 (SQL names come from Table, which takes plain identifiers only; values are parameters)

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage.ids import content_id, sha256_of
from storage.lake import Lake, Transaction
from storage.query_files import (
    SCORES,
    BadRow,
    ColumnNames,
    GoodRow,
    Row,
    UnreadableFile,
    read_query_file,
    refuse_what_is_no_query_file,
)
from storage.query_sources import (
    TABLES,
    Kind,
    clear_away,
    file_id,
    files_to_read_again,
    forget_failures,
    has_dead_lines,
    one_at_a_time,
    other_file_with,
    record,
    record_failure,
    recorded_file,
    storable,
)
from storage.tables import INGESTION_FAILURES, QUERY_FILES, QUERY_LINES, RAW_PROMPTS, TAKEN_DOWN, Table
from storage.take_down import NOTHING, TakeDown

__all__ = ["FileChanged", "IngestReport", "Kind", "UnreadableFile", "bring_back", "ingest"]

BATCH_ROWS = 50_000
"""Rows that are held in memory and committed together."""

BATCH_CHARACTERS = 50_000_000

READING = "1"
"""Changes when the same bytes, read in the same way, give other rows."""

_SCORES = ", ".join(SCORES)
# A text that stands twice in a batch counts where it stands first.
_QUERY_ROWS = """
    SELECT content_id([text]) AS query_id, *
    FROM incoming
    QUALIFY row_number() OVER (PARTITION BY text ORDER BY source_line) = 1
"""
_LINE_ROWS = f"""
    SELECT content_id([?::VARCHAR, query_id]) AS line_id, ?::VARCHAR AS content, source_sha256 AS sha256, query_id,
           source_line AS line, {_SCORES}
    FROM incoming
"""
_FAILURE_ROWS = """
    SELECT content_id([source_sha256, line::VARCHAR]) AS failure_id, *
    FROM incoming
"""


class FileChanged(UnreadableFile):
    """A file was replaced or written to while it was read; nothing of it is kept."""


@dataclass(frozen=True)
class IngestReport:
    """What became of a file's rows: new + known + failed + taken_down = rows_read. Known texts were in the lake
    already, or further up in the file.

    read: whether the file was read; one whose content is known is not, and its figures are those of the earlier
    reading, with nothing new. removed: queries that went because only the file's old content held them.
    """

    source: str
    sha256: str
    rows_read: int
    new: int
    known: int
    failed: int
    seconds: float
    read: bool = True
    removed: int = 0
    taken_down: int = 0


def ingest(
    lake: Lake,
    file: Path,
    column: str | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    kind: Kind = Kind.COMMAND,
    name: str | None = None,
    take_down: TakeDown = NOTHING,
) -> IngestReport:
    """Take a query file in: csv, tsv, json, jsonl, parquet or txt.

    Each distinct text is kept once, with the file and line that had it first. A file whose content the lake has, under
    this name or another, is not read again. Other content under a known name is a correction: what only the old content
    held is removed. Bad rows go to `ingestion_failures`.

    `kind` and `name` (default: the resolved path) say which file it is. `column`, `columns`: see ColumnNames.text and
    .mapped. `take_down`: queries that are kept out. Raises UnreadableFile; of a file that breaks off, what stands
    before the break is kept if the file is new, and nothing changes if it is a correction. A file that changes while it
    is read is refused, and nothing of it is kept.
    """
    return _ingest(
        lake, file, _Source(kind, name or str(file.resolve()), ColumnNames(column, columns or {})), take_down
    )


def bring_back(lake: Lake, inbox: Path, take_down: TakeDown = NOTHING) -> list[IngestReport]:
    """Read the files again that hold queries which were taken down and are no longer. A file that is gone, or has other
    content by now, brings nothing back."""
    reports = []
    for row in files_to_read_again(lake):
        kind, path = Kind(row["kind"]), Path(row["path"])
        file = inbox / path if kind is Kind.INBOX else path
        asked = json.loads(row["columns"] or "{}")
        names = ColumnNames(asked.get("text"), asked.get("mapped", {}))
        try:
            if _content(names, file, sha256_of(file)) == row["content"]:
                reports.append(_ingest(lake, file, _Source(kind, row["path"], names), take_down, again=True))
        except (OSError, UnreadableFile):
            continue  # its own reading has said what is wrong with it
    return reports


@dataclass(frozen=True)
class _Source:
    """Which file it is, apart from where it lies, and how it is read."""

    kind: Kind
    name: str
    names: ColumnNames

    @property
    def asked(self) -> str:
        return json.dumps({"text": self.names.text, "mapped": dict(self.names.mapped)}, sort_keys=True)


def _ingest(lake: Lake, file: Path, source: _Source, take_down: TakeDown, *, again: bool = False) -> IngestReport:
    started = time.monotonic()
    refuse_what_is_no_query_file(file)
    watched = _Watched.now(file)
    content = _content(source.names, file, watched.sha256)
    recorded = recorded_file(lake, source.kind, source.name)
    if again and (recorded is None or recorded["content"] != content):
        raise FileChanged(f"{storable(str(file))}: has other content by now")
    if not again and recorded is not None and recorded["content"] == content:
        return _known(lake, source, watched, recorded, started)
    rows = read_query_file(file, names=source.names)
    first = _first(rows, watched)  # a file that is wrong as a whole is refused before anything else is done
    lake.create(*TABLES)
    with one_at_a_time(lake):
        recorded = recorded_file(lake, source.kind, source.name)
        same = None if again else other_file_with(lake, content)
        intake = _Intake(lake, storable(file.name), watched.sha256, content, take_down, again)
        if same is not None and _breaks_off(same) and recorded is not None and recorded["content"] is not None:
            raise UnreadableFile(f"{same['error']}; of the file as it was before, everything stays")
        if same is not None:
            removed = _switch(lake, source, watched, content, same, recorded, intake)
            if _breaks_off(same):
                raise UnreadableFile(same["error"])
            return _not_read(intake.source, watched, same, started, removed)
        if not again and has_dead_lines(lake):
            with lake.write({"asset": RAW_PROMPTS.label, "text": "clear leftovers away"}) as transaction:
                clear_away(transaction)
        error = _read(first, rows, intake, watched, recorded if not again else None)
        counts = {"rows_read": intake.read + intake.held, "failed": 0, "error": error}
        removed = _switch(lake, source, watched, content, counts, recorded, intake)
    if error is not None:
        raise UnreadableFile(error)
    return IngestReport(
        source=intake.source,
        sha256=watched.sha256,
        rows_read=intake.read,
        new=intake.new,
        known=intake.read - intake.new - intake.failed - intake.taken_down,
        failed=intake.failed,
        seconds=time.monotonic() - started,
        removed=removed,
        taken_down=intake.taken_down,
    )


# ---- the steps of it ---------------------------------------------------------------------------------------


def _first(rows: Any, watched: _Watched) -> Row:
    try:
        row: Row = next(rows)
        return row
    except UnreadableFile as error:
        watched.refuse_if_changed(error)
        raise


def _read(first: Row, rows: Any, intake: _Intake, watched: _Watched, replaced: Mapping[str, Any] | None) -> str | None:
    """Take all rows in; the last of them are not committed yet. What is wrong with the file, if it breaks off and what
    stands before the break is to be kept."""
    try:
        intake.add(first)
        for row in rows:
            intake.add(row)
    except UnreadableFile as error:
        try:
            watched.refuse_if_changed(error)
            if replaced is not None and replaced["content"] is not None:
                raise UnreadableFile(f"{error}; of the file as it was before, everything stays") from error
        except UnreadableFile:
            intake.take_back()
            raise
        return f"{error}; kept of it: {intake.new + intake.new_in_hand()} new queries"
    try:
        watched.refuse_if_changed()
    except UnreadableFile:
        intake.take_back()
        raise
    return None


def _known(lake: Lake, source: _Source, watched: _Watched, recorded: Mapping[str, Any], started: float) -> IngestReport:
    """The report on a file whose content is there; nothing is written but its time stamp, if that is another."""
    if _breaks_off(recorded):
        raise UnreadableFile(recorded["error"])
    stamp = {"bytes": watched.state.st_size, "modified_ns": watched.state.st_mtime_ns}
    if source.kind is Kind.INBOX and (recorded["error"] or any(recorded[key] != now for key, now in stamp.items())):
        changes = {"error": None, "refused_sha256": None, "refused_columns": None, **stamp}
        with lake.write({"asset": QUERY_FILES.label, "text": f"looked at {recorded['source']}"}) as transaction:
            record(transaction, {**recorded, **changes})
            forget_failures(transaction, [recorded["refused_sha256"]] if recorded["refused_sha256"] else [])
    return _not_read(recorded["source"], watched, recorded, started)


def _not_read(
    source: str, watched: _Watched, earlier: Mapping[str, Any], started: float, removed: int = 0
) -> IngestReport:
    """The report on a file whose content was read earlier, under this name or another: with its figures."""
    failed = earlier["failed"] or 0
    return IngestReport(
        source=source,
        sha256=watched.sha256,
        rows_read=earlier["rows_read"],
        new=0,
        known=earlier["rows_read"] - failed,
        failed=failed,
        seconds=time.monotonic() - started,
        read=False,
        removed=removed,
    )


def _breaks_off(recorded: Mapping[str, Any]) -> bool:
    """Whether what was taken in of a file is what stands before a break."""
    return recorded["error"] is not None and recorded["refused_sha256"] is None


def _switch(
    lake: Lake,
    source: _Source,
    watched: _Watched,
    content: str,
    counts: Mapping[str, Any],
    recorded: Mapping[str, Any] | None,
    intake: _Intake,
) -> int:
    """The last commit: what is left of the new content, the file's record, and the removal of what only its old content
    held. How many queries were removed."""
    old = recorded or {}
    row: dict[str, Any] = {
        "file_id": file_id(source.kind, source.name),
        "kind": str(source.kind),
        "path": storable(source.name),
        "source": intake.source,
        "sha256": watched.sha256,
        "content": content,
        "columns": source.asked,
        "error": counts["error"] if counts.get("refused_sha256") is None else None,
        "bytes": watched.state.st_size,
        "modified_ns": watched.state.st_mtime_ns,
        "at": old.get("at"),
    }
    with lake.write({"asset": RAW_PROMPTS.label, "text": f"ingest {intake.source}"}) as transaction:
        intake.write(transaction)
        row |= {
            "rows_read": counts["rows_read"],
            "new": old.get("new") if intake.again else intake.new,
            "failed": intake.failed or counts["failed"],
        }
        record(transaction, row)
        if row["error"] is not None:
            record_failure(transaction, intake.source, watched.sha256, row["error"])
        if old.get("content") in (None, content) and not old.get("refused_sha256"):
            return 0
        return clear_away(transaction, [old[key] for key in ("sha256", "refused_sha256") if old.get(key)])


@dataclass
class _Intake:
    """One file on its way into the lake: the rows not yet committed, and what became of the others."""

    lake: Lake
    source: str
    sha256: str
    content: str
    take_down: TakeDown
    again: bool = False
    read: int = 0
    new: int = 0
    failed: int = 0
    taken_down: int = 0
    committed: bool = False
    _good: list[GoodRow] = field(default_factory=list)
    _bad: list[BadRow] = field(default_factory=list)
    _characters: int = 0

    @property
    def held(self) -> int:
        """Rows that are not committed yet."""
        return len(self._good) + len(self._bad)

    def add(self, row: Row) -> None:
        """Take one row; the rows are committed when there are enough of them."""
        if isinstance(row, BadRow):
            self._bad.append(row)
        else:
            self._good.append(row)
            self._characters += len(row.text)
        if self.held >= BATCH_ROWS or self._characters >= BATCH_CHARACTERS:
            with self.lake.write({"asset": RAW_PROMPTS.label, "text": f"ingest {self.source}"}) as transaction:
                self.write(transaction)

    def new_in_hand(self) -> int:
        """How many of the rows not yet committed the lake does not have."""
        queries, _ = self._sorted_out(self._now())
        return int(queries.num_rows)

    def write(self, transaction: Transaction) -> None:
        """Write what was added since the last time."""
        now = self._now()
        if not self.committed and self.held:  # what an earlier reading of the same bytes had found
            transaction.execute(f"DELETE FROM {INGESTION_FAILURES.qualified} WHERE source_sha256 = ?", [self.sha256])
            self.committed = True
        if self._good:
            queries, listed = self._sorted_out(now)
            if self.again:  # what the file holds is known, and only that may come back
                queries = transaction.query(
                    f"SELECT * FROM queries SEMI JOIN (SELECT query_id FROM {QUERY_LINES.qualified} WHERE content = ?) "
                    "USING (query_id)",
                    [self.content],
                    queries=queries,
                )
            else:
                everything = transaction.query(_QUERY_ROWS, incoming=_good_rows(self._good, self, now))
                lines = transaction.query(_LINE_ROWS, [self.content, self.content], incoming=everything)
                transaction.insert(QUERY_LINES, lines)
            transaction.insert(TAKEN_DOWN, listed)
            self.new += transaction.insert(RAW_PROMPTS, queries)
            names = set(listed["query_id"].to_pylist())
            self.taken_down += sum(content_id(row.text) in names for row in self._good) if names else 0
        if self._bad:
            failures = transaction.query(_FAILURE_ROWS, incoming=_bad_rows(self._bad, self, now))
            transaction.upsert(INGESTION_FAILURES, failures)
        self.read += self.held
        self.failed += len(self._bad)
        self._good, self._bad, self._characters = [], [], 0

    def take_back(self) -> None:
        """Remove what was committed of a file that is not taken in after all."""
        if has_dead_lines(self.lake):
            with self.lake.write({"asset": RAW_PROMPTS.label, "text": f"not {self.source}"}) as transaction:
                clear_away(transaction, [self.sha256])

    def _sorted_out(self, now: datetime.datetime) -> tuple[pa.Table, pa.Table]:
        """The rows to be written, whose text the lake does not have, each text once; and those that are taken down."""
        incoming = _good_rows(self._good, self, now)
        unknown = self.lake.query(
            f"SELECT * FROM ({_QUERY_ROWS}) ANTI JOIN (SELECT query_id FROM {RAW_PROMPTS.qualified}) "
            "USING (query_id) ORDER BY source_line",
            incoming=incoming,
        )
        listed = self.take_down.listed(unknown)
        keep = pc.invert(pc.is_in(unknown["query_id"], value_set=listed["query_id"].combine_chunks()))
        return unknown.filter(keep), listed

    @staticmethod
    def _now() -> datetime.datetime:
        return datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True)
class _Watched:
    """A file as it was when reading began: it must still be so at the end."""

    file: Path
    state: os.stat_result
    sha256: str

    @classmethod
    def now(cls, file: Path) -> _Watched:
        try:
            state = file.stat()
            return cls(file, state, sha256_of(file))
        except OSError as error:
            shown = storable(str(file))
            raise UnreadableFile(f"{shown}: cannot be read: {error.strerror or error}") from error

    def refuse_if_changed(self, cause: Exception | None = None) -> None:
        """FileChanged if another file lies there, or its bytes are others."""
        try:
            state = self.file.stat()
            changed = _stamp(state) != _stamp(self.state) or sha256_of(self.file) != self.sha256
        except OSError:
            changed = True
        if changed:
            shown = storable(str(self.file))
            raise FileChanged(f"{shown}: changed while it was read; it is taken in at the next refresh") from cause


def _stamp(state: os.stat_result) -> tuple[int, ...]:
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def _content(names: ColumnNames, file: Path, sha256: str) -> str:
    """The id of a file's bytes and of how they are read."""
    asked = json.dumps([names.text, dict(names.mapped)], sort_keys=True)
    return content_id(READING, sha256, file.suffix.lower(), asked)


# ---- rows as tables ----------------------------------------------------------------------------------------


def _good_rows(rows: Sequence[GoodRow], intake: _Intake, now: datetime.datetime) -> pa.Table:
    scores = {name: [row.scores[index] for row in rows] for index, name in enumerate(SCORES)}
    columns: dict[str, Sequence[object]] = {
        "text": [row.text for row in rows],
        "source": [intake.source] * len(rows),
        "source_line": [row.line for row in rows],
        "source_sha256": [intake.sha256] * len(rows),
        "first_seen": [now] * len(rows),
        **scores,
    }
    return _without_key(RAW_PROMPTS, columns)


def _bad_rows(rows: Sequence[BadRow], intake: _Intake, now: datetime.datetime) -> pa.Table:
    columns: dict[str, Sequence[object]] = {
        "source": [intake.source] * len(rows),
        "source_sha256": [intake.sha256] * len(rows),
        "line": [row.line for row in rows],
        "error": [row.error for row in rows],
        "excerpt": [row.excerpt for row in rows],
        "last_at": [now] * len(rows),
    }
    return _without_key(INGESTION_FAILURES, columns)


def _without_key(table: Table, columns: Mapping[str, Sequence[object]]) -> pa.Table:
    """Columns with the table's types; the key is made in SQL."""
    fields = [field for field in table.arrow_schema if field.name != table.key]
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in fields})
