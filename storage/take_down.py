"""Taking queries down: those that a list names are in no table, whatever files hold them.

Belongs here: reading take-down files, and making the raw prompts agree with them. Does not belong here: what curation
makes of a text (given as a function), and what follows downstream (the refresh of every table).

Of a query that is taken down, the lake keeps its id and the id of its folded text, so that it can come back when the
list no longer names it; the text is not kept.
"""

# ruff: noqa: S608 (SQL names come from Table, which takes plain identifiers only; values are parameters)

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from storage.ids import ID_LENGTH, content_id
from storage.lake import Lake
from storage.query_files import TEXT_COLUMNS, BadRow, ColumnNames, UnreadableFile, read_query_file
from storage.query_sources import TABLES, Kind, file_id, one_at_a_time, record, recorded_files, storable
from storage.tables import QUERY_FILES, RAW_PROMPTS, TAKEN_DOWN

_QUERY_ID = re.compile(rf"[0-9a-f]{{{ID_LENGTH}}}")
_NAMES = ColumnNames(usual=(*TEXT_COLUMNS, "query_id"))
_ROWS_AT_ONCE = 50_000


def folded(text: str) -> str:
    """Text without regard to capitals and spaces."""
    return " ".join(text.lower().split())


@dataclass(frozen=True)
class TakeDown:
    """What must not be used: query ids, and wordings (content ids of folded texts). `files`: {name: hash of what it
    lists}. `fold` makes texts equal that count as the same."""

    ids: frozenset[str] = frozenset()
    wordings: frozenset[str] = frozenset()
    files: Mapping[str, str] = field(default_factory=dict)
    fold: Callable[[str], str] = folded

    def __bool__(self) -> bool:
        return bool(self.ids or self.wordings)

    def wording(self, text: str) -> str:
        """The id of a text that counts as the same."""
        return content_id(self.fold(text))

    def names(self, query_id: str, text: str) -> bool:
        """Whether the query must not be used."""
        return query_id in self.ids or self.wording(text) in self.wordings

    def listed(self, rows: pa.Table) -> pa.Table:
        """(query_id, wording) of those of the rows (query_id, text) that must not be used."""
        found = [
            (query_id, self.wording(text))
            for query_id, text in zip(rows["query_id"].to_pylist(), rows["text"].to_pylist(), strict=True)
            if self and self.names(query_id, text)
        ]
        return _taken_down(found)


NOTHING = TakeDown()


@dataclass(frozen=True)
class TakeDownReport:
    """removed: queries that were there. kept_out: all that are taken down. entries: of the list. unmatched: those that
    no query ever matched."""

    removed: int
    kept_out: int
    entries: int
    unmatched: int


def load_take_down(files: Iterable[Path], fold: Callable[[str], str] = folded) -> TakeDown:
    """Read take-down files: each row a query, as it was written or folded, or a query id.

    Raises UnreadableFile for a file that is not there, or has a row that cannot be read: nobody should think a query
    taken down that is not. Empty lines do not count.
    """
    ids: set[str] = set()
    wordings: set[str] = set()
    hashes = {}
    for file in files:
        listed: set[str] = set()
        nothing_yet = file.is_file() and file.stat().st_size == 0
        for row in () if nothing_yet else read_query_file(file, names=_NAMES):
            if isinstance(row, BadRow):
                if not row.excerpt.strip():
                    continue
                raise UnreadableFile(
                    f"{storable(str(file))}: line {row.line} cannot be read ({row.error}): correct or remove it, "
                    "so that no query is thought to be taken down that is not"
                )
            text = row.text.strip()
            if _QUERY_ID.fullmatch(text):
                ids.add(text)
            wordings.add(content_id(fold(row.text)))
            listed |= {text, content_id(fold(row.text))}
        hashes[str(file.resolve())] = content_id(*sorted(listed))
    return TakeDown(frozenset(ids), frozenset(wordings) - {content_id("")}, hashes, fold)


def apply_take_down(lake: Lake, take_down: TakeDown) -> int:
    """Remove the queries that are listed, and forget those that are listed no longer. One transaction. How many of the
    raw prompts were removed.

    The raw prompts are looked through only if the list has changed: what came since was looked at when it came.
    """
    lake.create(*TABLES)
    with one_at_a_time(lake):
        recorded = {row["path"]: row["sha256"] for row in recorded_files(lake, Kind.TAKE_DOWN)}
        changed = recorded != {storable(name): listed for name, listed in take_down.files.items()}
        released = _released(lake, take_down)
        return _apply(lake, take_down, released) if changed or released else 0


def summary(lake: Lake, take_down: TakeDown, removed: int) -> TakeDownReport:
    """What the list has done so far; `removed`: by `apply_take_down`."""
    rows = lake.read(TAKEN_DOWN, columns=["query_id", "wording"])
    ids, wordings = set(rows["query_id"].to_pylist()), set(rows["wording"].to_pylist())
    wanted = take_down.wordings - {take_down.wording(query_id) for query_id in take_down.ids}
    return TakeDownReport(
        removed=removed,
        kept_out=rows.num_rows,
        entries=len(take_down.ids) + len(wanted),
        unmatched=len(take_down.ids - ids) + len(wanted - wordings),
    )


def _released(lake: Lake, take_down: TakeDown) -> list[str]:
    """Queries that were taken down and are listed no longer."""
    return [
        row["query_id"]
        for row in lake.read(TAKEN_DOWN, columns=["query_id", "wording"]).to_pylist()
        if row["query_id"] not in take_down.ids and row["wording"] not in take_down.wordings
    ]


def _apply(lake: Lake, take_down: TakeDown, released: Collection[str]) -> int:
    texts = lake.read(RAW_PROMPTS, columns=["query_id", "text"])
    found = [take_down.listed(texts.slice(start, _ROWS_AT_ONCE)) for start in range(0, texts.num_rows, _ROWS_AT_ONCE)]
    listed = pa.concat_tables(found) if found else _taken_down([])
    with lake.write({"asset": RAW_PROMPTS.label, "text": "take down"}) as transaction:
        transaction.delete(TAKEN_DOWN, released)
        transaction.insert(TAKEN_DOWN, listed)
        removed = transaction.delete(RAW_PROMPTS, listed["query_id"])
        transaction.execute(f"DELETE FROM {QUERY_FILES.qualified} WHERE kind = ?", [str(Kind.TAKE_DOWN)])
        for name, digest in take_down.files.items():
            record(
                transaction,
                {
                    "file_id": file_id(Kind.TAKE_DOWN, name),
                    "kind": str(Kind.TAKE_DOWN),
                    "path": storable(name),
                    "source": storable(Path(name).name),
                    "sha256": digest,
                },
            )
    return removed


def _taken_down(found: Collection[tuple[str, str]]) -> pa.Table:
    now = datetime.datetime.now(datetime.UTC)
    rows = [{"query_id": query_id, "wording": wording, "at": now} for query_id, wording in found]
    return pa.Table.from_pylist(rows, schema=TAKEN_DOWN.arrow_schema)
