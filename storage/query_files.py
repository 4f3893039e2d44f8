"""Reading query files of any supported format, row by row, good rows and bad.

Here: formats, columns, encodings, and what makes a row unusable. Files of any size are streamed. What
becomes of the rows is in `storage.ingestion`; what makes a query worth keeping is for curation to say.
"""

from __future__ import annotations

import codecs
import csv
import json
import math
import os
import stat
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TextIO

SCORES = ("toxicity", "obscene", "identity_attack", "insult", "threat", "sexual_explicit")
"""Columns that are taken along where a file has them (VidProM's NSFW scores)."""

TEXT_COLUMNS = ("text", "query", "prompt")
"""Names of the column with the queries, in the order they are looked for."""

EXCERPT_LENGTH = 200
LONGEST_FIELD = 10_000_000
"""Characters (of a line of text, or a value of Parquet: bytes) that are held in memory at once."""

LONGEST_ELEMENT = 64_000_000
_CHUNK = 1 << 20
_PARQUET_BATCH = 10_000
_PREFIX_BATCH = 16

# What a Parquet file may unpack to: real ones shrink to a tenth, one that shrinks to a thousandth is made to harm.
_UNPACKED_BYTES = 1 << 28
_UNPACKED_BYTES_A_BYTE = 100
_UNPACKED_ROWS = 1_000_000
_UNPACKED_ROWS_A_BYTE = 10

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
}

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


@dataclass(frozen=True)
class ColumnNames:
    """How the columns of a file are called.

    `text`: the column with the queries; a file without it is refused. `mapped`: {text or a score: column}, used where
    a file has that column; else the usual names count. `usual`: names of the column with the queries, in the order
    they are looked for.
    """

    text: str | None = None
    mapped: Mapping[str, str] = field(default_factory=dict)
    usual: tuple[str, ...] = TEXT_COLUMNS

    def text_of(self, names: Sequence[str]) -> str | None:
        """The column with the queries: the one asked for, else the first of the usual names, in any case."""
        if self.text is not None:
            return self.text if self.text in names else None
        if self.mapped.get("text") in names:
            return self.mapped["text"]
        lowered = {name.lower(): name for name in reversed(names)}
        return next((lowered[name] for name in self.usual if name in lowered), None)

    def scores_of(self, names: Sequence[str]) -> dict[str, str]:
        """{score: column} of the scores that there are."""
        found = {}
        for score in SCORES:
            column = self.mapped.get(score, score)
            column = column if column in names else score
            if column in names:
                found[score] = column
        return found

    @property
    def wanted(self) -> str:
        """For messages: what a column with queries would have to be called."""
        if self.text is not None:
            return self.text
        return ", ".join(dict.fromkeys([*([self.mapped["text"]] if "text" in self.mapped else []), *self.usual]))


def read_query_file(file: Path, column: str | None = None, *, names: ColumnNames | None = None) -> Iterator[Row]:
    """The rows of a query file, in order; the format goes by the file's ending.

    `column` names the column with the queries; `names` says more; else it is the first of TEXT_COLUMNS that the file
    has. Memory is bounded, however the file is made. Raises UnreadableFile, where a file breaks off after the rows
    before the break.
    """
    refuse_what_is_no_query_file(file)
    names = ColumnNames(text=column) if names is None else names
    rows = 0
    try:
        for row in _READERS[file.suffix.lower()](file, names):
            rows += 1
            yield row
    except OSError as error:
        raise UnreadableFile(f"{_shown(file)}: cannot be read: {_said(error)}") from error
    if rows == 0:
        raise UnreadableFile(f"{_shown(file)}: holds no queries")


def refuse_what_is_no_query_file(file: Path) -> None:
    """UnreadableFile for a folder, a pipe, an unknown ending, an empty or a compressed file."""
    try:
        state = file.stat()
        if stat.S_ISDIR(state.st_mode):
            raise UnreadableFile(f"{_shown(file)}: is a folder; name a file")
        if not stat.S_ISREG(state.st_mode):
            raise UnreadableFile(f"{_shown(file)}: is no plain file")
        if file.suffix.lower() not in _READERS:
            raise UnreadableFile(f"{_shown(file)}: unknown kind of file; known are {', '.join(sorted(_READERS))}")
        if state.st_size == 0:
            raise UnreadableFile(f"{_shown(file)}: is empty")
        with file.open("rb") as stream:
            beginning = stream.read(8)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnreadableFile(f"{_shown(file)}: there is no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a null character
        raise UnreadableFile(f"{_shown(file)}: cannot be read: {_said(error)}") from error
    packed = next((kind for magic, kind in _COMPRESSED.items() if beginning.startswith(magic)), None)
    if packed:
        raise UnreadableFile(f"{_shown(file)}: is compressed ({packed}); unpack it first")


SUFFIXES = frozenset({".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".txt"})
"""Endings of the files that can be read."""


# ---- text: a query a line ----------------------------------------------------------------------------------


def _read_text(file: Path, names: ColumnNames) -> Iterator[Row]:
    del names
    for number, line in _lines(file):
        yield line if isinstance(line, BadRow) else _row(number, line, line)


def _lines(file: Path) -> Iterator[tuple[int, str | BadRow]]:
    """Lines without their ends, numbered from 1. Bytes that are not UTF-8 become lone surrogates, which
    `_row` refuses. Only line feeds end a line: the other separators of Unicode may stand in a query."""
    with file.open("rb") as stream:
        number = 0
        while line := stream.readline(LONGEST_FIELD):
            number += 1
            text = line.decode("utf-8", errors="surrogateescape")
            if len(line) == LONGEST_FIELD and not line.endswith(b"\n"):
                while (more := stream.readline(LONGEST_FIELD)) and not more.endswith(b"\n"):
                    pass
                yield number, BadRow(number, _TOO_LONG, _excerpt(text))
                continue
            yield number, text.removeprefix("\ufeff" if number == 1 else "").rstrip("\r\n")


_TOO_LONG = f"longer than {LONGEST_FIELD:,} bytes"


# ---- JSON lines --------------------------------------------------------------------------------------------


def _read_json_lines(file: Path, names: ColumnNames) -> Iterator[Row]:
    for number, line in _lines(file):
        if isinstance(line, BadRow):
            yield line
            continue
        if not line.strip():
            yield BadRow(number, "empty line", "")
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: also numbers of too many digits
            yield BadRow(number, f"broken JSON: {_said(error)}", _excerpt(line))
            continue
        yield _row_of_value(number, value, names, line)


# ---- a JSON list -------------------------------------------------------------------------------------------


def _read_json(file: Path, names: ColumnNames) -> Iterator[Row]:
    for number, value, source in _json_list(file):
        yield _row_of_value(number, value, names, source)


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
            raise UnreadableFile(f"{_shown(file)}: something follows the end of the list; {number} elements were read")


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
            raise UnreadableFile(f"{_shown(self._file)}: {otherwise}, but {what}")

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
                        f"{_shown(self._file)}: the list breaks off or is malformed at element {number} "
                        f"({_said(error)}); the {number - 1} elements before it were read"
                    ) from error
            if len(self._text) - self._at > LONGEST_ELEMENT:
                raise UnreadableFile(
                    f"{_shown(self._file)}: the list is malformed at element {number} (no end of it within "
                    f"{LONGEST_ELEMENT:,} characters); the {number - 1} elements before it were read"
                )
            self._grow(more)
            more *= 2

    def _grow(self, size: int) -> None:
        data = self._stream.read(size)
        self._ended = not data
        self._text = self._text[self._at :] + self._decoder.decode(data, final=self._ended)
        self._at = 0


# ---- comma and tab separated -------------------------------------------------------------------------------


def _read_comma_separated(file: Path, names: ColumnNames) -> Iterator[Row]:
    return _read_separated(file, names, ",")


def _read_tab_separated(file: Path, names: ColumnNames) -> Iterator[Row]:
    return _read_separated(file, names, "\t")


def _read_separated(file: Path, names: ColumnNames, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_FIELD)
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        records = _records(stream, delimiter)
        header = next(records, None)
        if header is None or isinstance(header, BadRow):
            raise UnreadableFile(f"{_shown(file)}: its first line is no header: {header.error if header else 'empty'}")
        columns = _Columns.of([name.strip() for name in header.fields], names, file)
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
    def of(cls, there: Sequence[str], names: ColumnNames, file: Path) -> _Columns:
        chosen = names.text_of(there)
        if chosen is None:
            raise UnreadableFile(_no_column(file, there, names))
        scores = {score: there.index(column) for score, column in names.scores_of(there).items()}
        return cls(len(there), there.index(chosen), scores)

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
            yield BadRow(number, f"broken record: {_said(error)}", _excerpt(lines.taken[0]))
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
        # A line that is too long comes in pieces, each of them longer than a field may be.
        line = self._given_back.popleft() if self._given_back else self._stream.readline(LONGEST_FIELD + 1)
        if not line:
            raise StopIteration
        self.taken.append(line)
        return line

    def keep(self, count: int) -> None:
        """Be done with the first `count` lines taken; the others come again."""
        self._given_back.extendleft(reversed(self.taken[count:]))
        self.taken = []


# ---- Parquet -----------------------------------------------------------------------------------------------


def _read_parquet(file: Path, names: ColumnNames) -> Iterator[Row]:
    _probe(file, names)
    number = 0
    for batch, chosen, scores, sizes in _parquet_batches(file, names):
        columns = {score: batch.column(name) for score, name in scores.items()}
        for index in range(batch.num_rows):
            number += 1
            if sizes[index] > LONGEST_FIELD:
                yield BadRow(number, _TOO_LONG, "")
            else:
                yield _parquet_row(number, index, batch.column(chosen), columns)


def _probe(file: Path, names: ColumnNames) -> None:
    """Unpack the file in a process of its own, with so much memory at most: damaged files can end the process that
    reads them. UnreadableFile if it does not come through."""
    folder = str(Path(__file__).parent.parent)
    paths = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    question = json.dumps({"file": os.fsencode(file).hex(), "text": names.text, "mapped": dict(names.mapped)})
    program = "from storage.query_files import _answer_probe; _answer_probe()"
    try:
        done = subprocess.run(  # noqa: S603 (this very interpreter)
            [sys.executable, "-c", program, question, *names.usual],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60 + file.stat().st_size / 1e6,
        )
    except subprocess.TimeoutExpired as error:
        raise UnreadableFile(f"{_shown(file)}: is no readable Parquet file: unpacking it takes too long") from error
    if done.returncode == _REFUSED:
        raise UnreadableFile(done.stdout.decode("utf-8", errors="replace").strip())
    if done.returncode != 0:
        raise UnreadableFile(f"{_shown(file)}: is no readable Parquet file: whoever unpacks it ends")


def _answer_probe() -> None:
    """The process that `_probe` starts."""
    asked = json.loads(sys.argv[1])
    file = Path(os.fsdecode(bytes.fromhex(asked["file"])))
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_PROBE_MEMORY, _PROBE_MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):  # systems that know no such limit
        pass
    try:
        for _ in _parquet_batches(file, ColumnNames(asked["text"], asked["mapped"], tuple(sys.argv[2:]))):
            pass
    except (UnreadableFile, OSError, MemoryError) as error:
        said = error if isinstance(error, UnreadableFile) else f"{_shown(file)}: cannot be read: {_said(error)}"
        sys.stdout.buffer.write(str(said).encode("utf-8", errors="backslashreplace"))
        sys.stdout.flush()
        os._exit(_REFUSED)  # without tidying up, in which a damaged file may do harm, too
    os._exit(0)


_REFUSED = 3
_PROBE_MEMORY = 6 << 30


def _parquet_batches(file: Path, names: ColumnNames) -> Iterator[tuple[Any, str, dict[str, str], list[int]]]:
    """(batch, column with the queries, columns of the scores, bytes of text in each row), piece by piece."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(file) as source:
            chosen, scores = _parquet_columns(file, source.schema_arrow, names)
            wanted = list(dict.fromkeys([chosen, *scores.values()]))
            texts = [name for name in wanted if _is_text(_value_type(source.schema_arrow.field(name).type))]
            rows_at_once = _refuse_bombs(file, source.metadata, set(wanted))
        # Values that repeat stay one value in memory, however many rows have it; of values that are written as what
        # they add to the one before, Arrow cannot make a dictionary, and few are unpacked at once.
        dictionaries = texts if rows_at_once > _PREFIX_BATCH else []
        with parquet.ParquetFile(file, read_dictionary=dictionaries) as source:
            left = _unpacked(file.stat().st_size)
            for batch in source.iter_batches(rows_at_once, columns=wanted, use_threads=False):
                lengths = [_lengths(batch.column(name)) for name in texts]
                sizes = [sum(length or 0 for length in row) for row in zip(*lengths, strict=True)]
                left -= sum(size for size in sizes if size <= LONGEST_FIELD)
                if left < 0:
                    raise UnreadableFile(f"{_shown(file)}: {_BOMB}")
                yield batch, chosen, scores, sizes
    except (pa.ArrowException, KeyError, ValueError, OverflowError) as error:
        raise UnreadableFile(f"{_shown(file)}: is no readable Parquet file: {_said(error)}") from error


def _parquet_columns(file: Path, schema: Any, names: ColumnNames) -> tuple[str, dict[str, str]]:
    """The column with the queries, and {score: column}."""
    import pyarrow as pa

    chosen = names.text_of(schema.names)
    if chosen is None:
        raise UnreadableFile(_no_column(file, schema.names, names))
    scores = names.scores_of(schema.names)
    for name in (chosen, *scores.values()):
        shown = _one_line(name)[:40]
        if schema.names.count(name) > 1:
            raise UnreadableFile(f"{_shown(file)}: has several columns {shown}")
        kind = _value_type(schema.field(name).type)
        if name == chosen and not _is_text(kind):
            raise UnreadableFile(f"{_shown(file)}: its column {shown} holds {_one_line(str(kind))[:40]}, no text")
        if pa.types.is_nested(kind):
            raise UnreadableFile(f"{_shown(file)}: its column {shown} holds {_one_line(str(kind))[:40]}, no number")
    return chosen, scores


_BOMB = "unpacks to far more than any file of queries of its size does; it is not read"


def _unpacked(size: int) -> int:
    """Bytes of text that a Parquet file of `size` bytes may hold."""
    return _UNPACKED_BYTES + _UNPACKED_BYTES_A_BYTE * size


def _refuse_bombs(file: Path, metadata: Any, wanted: set[str]) -> int:
    """UnreadableFile for a file that says it holds too much for its size. Otherwise, rows to be unpacked at once."""
    size = file.stat().st_size
    if metadata.num_rows > _UNPACKED_ROWS + _UNPACKED_ROWS_A_BYTE * size:
        raise UnreadableFile(f"{_shown(file)}: {_BOMB} ({metadata.num_rows:,} rows)")
    unpacked, rows_at_once = 0, _PARQUET_BATCH
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(index)
            if chunk.path_in_schema.split(".")[0] not in wanted:
                continue
            unpacked += chunk.total_uncompressed_size
            if "DELTA_BYTE_ARRAY" in chunk.encodings:  # each value names how much of the one before it repeats
                rows_at_once = _PREFIX_BATCH
    if unpacked > _unpacked(size):
        raise UnreadableFile(f"{_shown(file)}: {_BOMB} ({unpacked:,} bytes)")
    return rows_at_once


def _value_type(type_: Any) -> Any:
    import pyarrow as pa

    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _is_text(type_: Any) -> bool:
    import pyarrow as pa

    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(is_kind(type_) for is_kind in kinds)


def _lengths(column: Any) -> list[int | None]:
    """How many bytes the texts of a column have, without making them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        lengths = pc.binary_length(column.dictionary).take(column.indices)
    else:
        lengths = pc.binary_length(column)
    found: list[int | None] = lengths.to_pylist()
    return found


def _parquet_row(number: int, index: int, texts: Any, scores: Mapping[str, Any]) -> Row:
    text = _scalar(texts[index])
    try:
        values = {score: _scalar(column[index]) for score, column in scores.items()}
    except (ValueError, ArithmeticError) as error:  # such as a date that Python does not know
        return BadRow(number, _said(error), _excerpt(str(text)))
    return _row(number, text, str(text), values)


def _scalar(value: Any) -> Any:
    """A value as Python has it; text that is not UTF-8, which Arrow does not check, with lone surrogates."""
    try:
        found = value.as_py()
    except UnicodeDecodeError as error:
        found = error.object
    return found.decode("utf-8", errors="surrogateescape") if isinstance(found, bytes) else found


# ---- rows --------------------------------------------------------------------------------------------------


def _row_of_value(number: int, value: Any, names: ColumnNames, source: str) -> Row:
    """The row of a JSON value: a string, or an object with a text column."""
    if not isinstance(value, dict):
        return _row(number, value, source)
    there = list(value)
    chosen = names.text_of(there)
    if chosen is None:
        return BadRow(number, f"the object has none of the keys {names.wanted}", _excerpt(source))
    scores = {score: value[column] for score, column in names.scores_of(there).items()}
    return _row(number, value[chosen], source, scores)


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
        return BadRow(number, _said(error), _excerpt(source))


def _scores(values: Mapping[str, Any]) -> Scores:
    return tuple(_score(name, values.get(name)) for name in SCORES)


def _score(name: str, value: Any) -> float | None:
    if value is None or value == "":
        return None
    try:
        score = float(value)
    except (ValueError, TypeError):
        raise ValueError(f"{name} is {str(value)[:40]!r}, which is no number") from None
    except OverflowError:
        raise ValueError(f"{name} is a number of too many digits") from None
    return score if math.isfinite(score) else None


def _excerpt(source: str) -> str:
    return source[:EXCERPT_LENGTH].rstrip("\r\n").encode("utf-8", errors="replace").decode("utf-8")


def _no_column(file: Path, there: Sequence[str], names: ColumnNames) -> str:
    shown = ", ".join(_excerpt(name)[:40] for name in there[:20])
    if names.text is not None:
        return f"{_shown(file)}: has no column {names.text!r}; its columns are {_one_line(shown)}"
    return f"{_shown(file)}: none of its columns is called {names.wanted}; name one of {_one_line(shown)}"


def _shown(file: Path) -> str:
    """A path for a message: in one line, and of characters that can be printed."""
    return _one_line(str(file).encode("utf-8", errors="backslashreplace").decode("utf-8"))


def _one_line(text: str) -> str:
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def _said(error: Exception) -> str:
    """What an error says, in one line."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return _one_line((said.splitlines() or [type(error).__name__])[0])


_READERS: Mapping[str, Callable[[Path, ColumnNames], Iterator[Row]]] = {
    ".csv": _read_comma_separated,
    ".tsv": _read_tab_separated,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}
