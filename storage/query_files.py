"""Reading query files of any supported format, row by row, good rows and bad.

Here: formats, columns, encodings, and what makes a row unusable. Files of any size are streamed. What
becomes of the rows is in `storage.ingestion`; what makes a query worth keeping is for curation to say.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

SCORES = ("toxicity", "obscene", "identity_attack", "insult", "threat", "sexual_explicit")
"""Columns that are taken along where a file has them (VidProM's NSFW scores)."""

TEXT_COLUMNS = ("text", "query", "prompt")
"""Names of the column with the queries, in the order they are looked for."""

EXCERPT_LENGTH = 200
LONGEST_FIELD = 10_000_000
_CHUNK = 1 << 20
_PARQUET_BATCH = 10_000

Scores = tuple[float | None, ...]
NO_SCORES: Scores = (None,) * len(SCORES)


class UnreadableFile(Exception):
    """A query file that cannot be read (any further); says why, in one line."""


@dataclass(frozen=True)
class GoodRow:
    """A query. line: line or position in the list, from 1. scores: in the order of SCORES."""

    line: int
    text: str
    scores: Scores = NO_SCORES


@dataclass(frozen=True)
class BadRow:
    """A row that holds no query, and why."""

    line: int
    error: str
    excerpt: str


Row = GoodRow | BadRow


def read_query_file(file: Path, column: str | None = None) -> Iterator[Row]:
    """The rows of a query file, in order; the format goes by the file's ending.

    `column` names the column with the queries; else it is the first of TEXT_COLUMNS that the file has. Raises
    UnreadableFile, where a file breaks off after the rows before the break.
    """
    reader = _READERS.get(file.suffix.lower())
    if file.is_dir():
        raise UnreadableFile(f"{file}: is a folder; name a file")
    if not file.exists():
        raise UnreadableFile(f"{file}: there is no such file")
    if reader is None:
        raise UnreadableFile(f"{file}: unknown kind of file; known are {', '.join(sorted(_READERS))}")
    rows = 0
    try:
        if file.stat().st_size == 0:
            raise UnreadableFile(f"{file}: is empty")
        for row in reader(file, column):
            rows += 1
            yield row
    except OSError as error:
        raise UnreadableFile(f"{file}: cannot be read: {error.strerror or error}") from error
    if rows == 0:
        raise UnreadableFile(f"{file}: holds no queries")


# ---- text: a query a line ----------------------------------------------------------------------------------


def _read_text(file: Path, column: str | None) -> Iterator[Row]:
    del column
    for number, line in _lines(file):
        yield _row(number, line, line)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines without their ends, numbered from 1. Bytes that are not UTF-8 become lone surrogates, which
    `_row` refuses. Only line feeds end a line: the other separators of Unicode may stand in a query."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            text = line.decode("utf-8", errors="surrogateescape")
            yield number, text.removeprefix("\ufeff" if number == 1 else "").rstrip("\r\n")


# ---- JSON lines --------------------------------------------------------------------------------------------


def _read_json_lines(file: Path, column: str | None) -> Iterator[Row]:
    for number, line in _lines(file):
        if not line.strip():
            yield BadRow(number, "empty line", "")
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: also numbers of too many digits
            yield BadRow(number, f"broken JSON: {_said(error)}", _excerpt(line))
            continue
        yield _row_of_value(number, value, column, line)


# ---- a JSON list -------------------------------------------------------------------------------------------


def _read_json(file: Path, column: str | None) -> Iterator[Row]:
    for number, value, source in _json_list(file):
        yield _row_of_value(number, value, column, source)


def _json_list(file: Path) -> Iterator[tuple[int, Any, str]]:
    """The elements of a list, numbered from 1, with their source text; read piece by piece, so that a list
    that is cut off gives what is before the cut."""
    decode = json.JSONDecoder().raw_decode
    with file.open("rb") as stream:
        window = _Window(file, stream)
        window.expect("[", "a list of strings or objects is needed")
        number = 0
        if window.accept("]"):
            return
        while True:
            number += 1
            value, source = window.element(decode, number)
            yield number, value, source
            if window.accept("]"):
                break
            window.expect(",", f"after element {number} a comma or the end of the list is needed")
        if window.peek():
            raise UnreadableFile(f"{file}: something follows the end of the list; {number} elements were read")


class _Window:
    """The part of a JSON file that is being looked at; grows until it holds a whole element."""

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self._file = file
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="surrogateescape")
        self._text = ""
        self._at = 0
        self._ended = False

    def peek(self) -> str:
        """The next character that is not white space, or "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._grow(_CHUNK)

    def accept(self, character: str) -> bool:
        """Go past the character if it is next."""
        found = self.peek() == character
        self._at += found
        return found

    def expect(self, character: str, otherwise: str) -> None:
        """Go past the character, which must be next."""
        found = self.peek()
        if not self.accept(character):
            what = "the file is cut off" if not found else f"it has {found!r}"
            raise UnreadableFile(f"{self._file}: {otherwise}, but {what}")

    def element(self, decode: Callable[[str, int], tuple[Any, int]], number: int) -> tuple[Any, str]:
        """The next element and its source. It counts as whole when something follows it: a number at the
        end of the window may go on."""
        self.peek()
        more = _CHUNK
        while True:
            try:
                value, end = decode(self._text, self._at)
                if end < len(self._text) or self._ended:
                    source = self._text[self._at : min(end, self._at + EXCERPT_LENGTH)]
                    self._at = end
                    return value, source
            except (ValueError, RecursionError) as error:  # ValueError: also numbers of too many digits
                if self._ended or isinstance(error, RecursionError):
                    raise UnreadableFile(
                        f"{self._file}: the list breaks off or is malformed at element {number} "
                        f"({_said(error)}); the {number - 1} elements before it were read"
                    ) from error
            self._grow(more)
            more *= 2

    def _grow(self, size: int) -> None:
        data = self._stream.read(size)
        self._ended = not data
        self._text = self._text[self._at :] + self._decoder.decode(data, final=self._ended)
        self._at = 0


# ---- comma and tab separated -------------------------------------------------------------------------------


def _read_comma_separated(file: Path, column: str | None) -> Iterator[Row]:
    return _read_separated(file, column, ",")


def _read_tab_separated(file: Path, column: str | None) -> Iterator[Row]:
    return _read_separated(file, column, "\t")


def _read_separated(file: Path, column: str | None, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_FIELD)
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        records = _records(stream, delimiter)
        header = next(records, None)
        if header is None or isinstance(header, BadRow):
            raise UnreadableFile(f"{file}: its first line is no header: {header.error if header else 'empty'}")
        columns = _Columns.of([name.strip() for name in header.fields], column, file)
        for record in records:
            yield record if isinstance(record, BadRow) else columns.row(record)


@dataclass(frozen=True)
class _Record:
    line: int
    fields: list[str]
    source: str


@dataclass(frozen=True)
class _Columns:
    """Where in a record the text and the scores stand."""

    width: int
    text: int
    scores: Mapping[str, int]

    @classmethod
    def of(cls, names: Sequence[str], column: str | None, file: Path) -> _Columns:
        chosen = text_column(names, column)
        if chosen is None:
            raise UnreadableFile(_no_column(file, names, column))
        scores = {name: names.index(name) for name in SCORES if name in names}
        return cls(len(names), names.index(chosen), scores)

    def row(self, record: _Record) -> Row:
        if not record.fields:
            return BadRow(record.line, "empty line", "")
        if len(record.fields) != self.width:
            error = f"{len(record.fields)} fields instead of {self.width}"
            return BadRow(record.line, error, _excerpt(record.source))
        values = {name: record.fields[index] for name, index in self.scores.items()}
        return _row(record.line, record.fields[self.text], record.source, values)


def _records(stream: TextIO, delimiter: str) -> Iterator[_Record | BadRow]:
    """Records with the lines they begin on. A record that is no good, such as one whose quote is never
    closed, costs its first line only: reading goes on with the line after it."""
    lines = _Lines(stream)
    number = 1
    while True:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield BadRow(number, f"broken record: {error}", _excerpt(lines.taken[0]))
            lines.keep(1)
            number += 1
            continue
        yield _Record(number, fields, lines.taken[0])
        number += len(lines.taken)
        lines.keep(len(lines.taken))


class _Lines:
    """Lines of a file that can be given back: those since the last `keep` are in `taken`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._given_back: deque[str] = deque()
        self.taken: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._given_back.popleft() if self._given_back else next(self._stream)
        self.taken.append(line)
        return line

    def keep(self, count: int) -> None:
        """Be done with the first `count` lines taken; the others come again."""
        self._given_back.extendleft(reversed(self.taken[count:]))
        self.taken = []


# ---- Parquet -----------------------------------------------------------------------------------------------


def _read_parquet(file: Path, column: str | None) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(file) as source:
            names = source.schema_arrow.names
            chosen = text_column(names, column)
            if chosen is None:
                raise UnreadableFile(_no_column(file, names, column))
            wanted = [chosen, *(name for name in SCORES if name in names)]
            number = 0
            for batch in source.iter_batches(_PARQUET_BATCH, columns=wanted):
                for index in range(batch.num_rows):
                    number += 1
                    values = {name: _scalar(batch.column(name)[index]) for name in wanted}
                    yield _row(number, values[chosen], str(values[chosen]), values)
    except pa.ArrowException as error:
        raise UnreadableFile(f"{file}: is no readable Parquet file: {_said(error)}") from error


def _scalar(value: Any) -> Any:
    """A value as Python has it; text that is not UTF-8, which Arrow does not check, with lone surrogates."""
    try:
        found = value.as_py()
    except UnicodeDecodeError as error:
        found = error.object
    return found.decode("utf-8", errors="surrogateescape") if isinstance(found, bytes) else found


# ---- rows --------------------------------------------------------------------------------------------------


def text_column(names: Sequence[str], column: str | None) -> str | None:
    """The column with the queries: the one asked for, else the first of TEXT_COLUMNS, in any case."""
    if column is not None:
        return column if column in names else None
    lowered = {name.lower(): name for name in reversed(names)}
    return next((lowered[name] for name in TEXT_COLUMNS if name in lowered), None)


def _row_of_value(number: int, value: Any, column: str | None, source: str) -> Row:
    """The row of a JSON value: a string, or an object with a text column."""
    if not isinstance(value, dict):
        return _row(number, value, source)
    chosen = text_column(list(value), column)
    if chosen is None:
        wanted = column if column is not None else ", ".join(TEXT_COLUMNS)
        return BadRow(number, f"the object has none of the keys {wanted}", _excerpt(source))
    return _row(number, value[chosen], source, value)


def _row(number: int, text: Any, source: str, values: Mapping[str, Any] | None = None) -> Row:
    """The row of a text with the source it was read from; `values` may hold scores."""
    if not isinstance(text, str):
        kind = "nothing" if text is None else type(text).__name__
        return BadRow(number, f"the query is no text ({kind})", _excerpt(source))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return BadRow(number, "the query is not valid UTF-8", _excerpt(source))
    if not text.strip():
        return BadRow(number, "the query is empty", _excerpt(source))
    try:
        return GoodRow(number, text, _scores(values) if values else NO_SCORES)
    except (ValueError, TypeError) as error:
        return BadRow(number, str(error), _excerpt(source))


def _scores(values: Mapping[str, Any]) -> Scores:
    return tuple(_score(name, values.get(name)) for name in SCORES)


def _score(name: str, value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        score = float(value)
    except (ValueError, TypeError):
        raise ValueError(f"{name} is {str(value)[:40]!r}, which is no number") from None
    return None if score != score else score


def _excerpt(source: str) -> str:
    return source[:EXCERPT_LENGTH].rstrip("\r\n").encode("utf-8", errors="replace").decode("utf-8")


def _no_column(file: Path, names: Sequence[str], column: str | None) -> str:
    there = ", ".join(_excerpt(name)[:40] for name in names[:20])
    if column is not None:
        return f"{file}: has no column {column!r}; its columns are {there}"
    return f"{file}: none of its columns is called {', '.join(TEXT_COLUMNS)}; name one of {there}"


def _said(error: Exception) -> str:
    """What an error says, in one line."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return (str(error).splitlines() or [type(error).__name__])[0]


_READERS: Mapping[str, Callable[[Path, str | None], Iterator[Row]]] = {
    ".csv": _read_comma_separated,
    ".tsv": _read_tab_separated,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}
