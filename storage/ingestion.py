"""Taking query files into the lake: every distinct text once, every bad row in quarantine.

Here: how rows of a file become rows of `raw_prompts` and `ingestion_failures`. How files are read is in
`storage.query_files`; which queries are worth keeping is for curation to say.
"""

# ruff: noqa: S608 (SQL names come from Table, which takes plain identifiers only; values are parameters)

from __future__ import annotations

import datetime
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa

from storage.lake import Lake
from storage.query_files import SCORES, BadRow, GoodRow, Row, UnreadableFile, read_query_file
from storage.tables import INGESTION_FAILURES, RAW_PROMPTS, Table

__all__ = ["IngestReport", "UnreadableFile", "ingest"]

BATCH_ROWS = 50_000
"""Rows that are held in memory and committed together."""

BATCH_CHARACTERS = 50_000_000

# A text that stands twice in a batch counts where it stands first.
_QUERY_ROWS = """
    SELECT content_id([text]) AS query_id, *
    FROM incoming
    QUALIFY row_number() OVER (PARTITION BY text ORDER BY source_line) = 1
"""
_FAILURE_ROWS = """
    SELECT content_id([source_sha256, line::VARCHAR]) AS failure_id, *
    FROM incoming
"""


@dataclass(frozen=True)
class IngestReport:
    """What became of a file's rows: new + known + failed = rows_read. Known texts were in the lake already,
    or further up in the file."""

    source: str
    sha256: str
    rows_read: int
    new: int
    known: int
    failed: int
    seconds: float


def ingest(lake: Lake, file: Path, column: str | None = None) -> IngestReport:
    """Take a query file in: csv, tsv, json, jsonl, parquet or txt.

    Each distinct text is kept once, with the file and line that had it first; rows that are there are not
    touched, so that taking a file in twice is taking it in once. Bad rows go to `ingestion_failures`. Rows
    are committed batch by batch. `column`: see `read_query_file`. Raises UnreadableFile; what stands before
    a file's break is kept.
    """
    started = time.monotonic()
    rows = read_query_file(file, column)
    first = next(rows)  # a file that is wrong as a whole is refused before anything else is done
    lake.create(RAW_PROMPTS, INGESTION_FAILURES)
    intake = _Intake(lake, file.name, _sha256(file))
    try:
        for row in chain([first], rows):
            intake.add(row)
    except UnreadableFile as error:
        intake.commit()
        raise UnreadableFile(f"{error}; kept of it: {intake.new} new queries") from error
    intake.commit()
    return IngestReport(
        source=intake.source,
        sha256=intake.sha256,
        rows_read=intake.read,
        new=intake.new,
        known=intake.read - intake.new - intake.failed,
        failed=intake.failed,
        seconds=time.monotonic() - started,
    )


class _Intake:
    """One file on its way into the lake: the rows not yet committed, and what became of the others."""

    def __init__(self, lake: Lake, source: str, sha256: str) -> None:
        self.source = source
        self.sha256 = sha256
        self.read = 0
        self.new = 0
        self.failed = 0
        self._lake = lake
        self._good: list[GoodRow] = []
        self._bad: list[BadRow] = []
        self._characters = 0

    def add(self, row: Row) -> None:
        """Take one row; the rows are committed when there are enough of them."""
        if isinstance(row, BadRow):
            self._bad.append(row)
        else:
            self._good.append(row)
            self._characters += len(row.text)
        if len(self._good) + len(self._bad) >= BATCH_ROWS or self._characters >= BATCH_CHARACTERS:
            self.commit()

    def commit(self) -> None:
        """Write what was added since the last commit; nothing to write is no commit."""
        now = datetime.datetime.now(datetime.UTC)
        queries = self._unknown(_good_rows(self._good, self.source, self.sha256, now))
        failures = self._lake.query(_FAILURE_ROWS, incoming=_bad_rows(self._bad, self.source, self.sha256, now))
        if queries.num_rows or failures.num_rows:
            with self._lake.write({"asset": RAW_PROMPTS.label, "text": f"ingest {self.source}"}) as transaction:
                self.new += transaction.insert(RAW_PROMPTS, queries)
                transaction.upsert(INGESTION_FAILURES, failures)
        self.read += len(self._good) + len(self._bad)
        self.failed += len(self._bad)
        self._good, self._bad, self._characters = [], [], 0

    def _unknown(self, incoming: pa.Table) -> pa.Table:
        """The rows whose text the lake does not have, each text once."""
        return self._lake.query(
            f"SELECT * FROM ({_QUERY_ROWS}) ANTI JOIN (SELECT query_id FROM {RAW_PROMPTS.qualified}) "
            "USING (query_id) ORDER BY source_line",
            incoming=incoming,
        )


def _good_rows(rows: Sequence[GoodRow], source: str, sha256: str, now: datetime.datetime) -> pa.Table:
    scores = {name: [row.scores[index] for row in rows] for index, name in enumerate(SCORES)}
    columns: dict[str, Sequence[object]] = {
        "text": [row.text for row in rows],
        "source": [source] * len(rows),
        "source_line": [row.line for row in rows],
        "source_sha256": [sha256] * len(rows),
        "first_seen": [now] * len(rows),
        **scores,
    }
    return _without_key(RAW_PROMPTS, columns)


def _bad_rows(rows: Sequence[BadRow], source: str, sha256: str, now: datetime.datetime) -> pa.Table:
    columns: dict[str, Sequence[object]] = {
        "source": [source] * len(rows),
        "source_sha256": [sha256] * len(rows),
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


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
