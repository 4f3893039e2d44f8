"""The inbox: a folder whose query files are taken in by themselves.

Belongs here: which files of the folder are whole, which the lake has not seen, and taking them in one by one, so that
none stands in another's way. Does not belong here: reading them (storage/query_files.py) and what becomes of their rows
(storage/ingestion.py).

It is a mailbox: a file that is taken out of the folder keeps its queries. One that is replaced by other content is
corrected by it.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from storage.ids import sha256_of
from storage.ingestion import FileChanged, IngestReport, UnreadableFile, ingest
from storage.lake import Lake
from storage.query_files import SUFFIXES
from storage.query_sources import Kind, file_id, recorded_file, recorded_files, refuse, storable
from storage.take_down import NOTHING, TakeDown

QUIET_SECONDS = 10.0
PATIENCE = 10
"""A file that looks half-written is whole after so many times the quiet that others need: it may end like that."""

UNFINISHED = (".part", ".tmp", ".crdownload", ".unfinished")
_END = 1 << 16
_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True)
class SettledFile:
    """A file that nobody has written to for a while. `name` is relative to the inbox."""

    name: str
    path: Path
    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class InboxReport:
    """What became of the inbox: files taken in (or known), files that cannot be read with the reason, and how many are
    left for the next time because they are still written to."""

    reports: tuple[IngestReport, ...]
    unreadable: tuple[tuple[str, str], ...]
    waiting: int


def settled_files(
    folder: Path, *, quiet_seconds: float = QUIET_SECONDS, now: Callable[[], float] = time.time
) -> list[SettledFile]:
    """The whole query files below a folder, by name; none if there is no folder.

    A file is whole when its size and time stamp have stood still for `quiet_seconds`, and ten times as long if it ends
    as half-written files do. Hidden files, links, and names that end as unfinished downloads do are passed over.
    """
    return [file for file, settled in _files(folder, quiet_seconds, now()) if settled]


def unknown_files(
    lake: Lake, folder: Path, *, quiet_seconds: float = QUIET_SECONDS, now: Callable[[], float] = time.time
) -> list[SettledFile]:
    """Settled files that the lake has not seen: neither with this size and time stamp, nor with this content."""
    known = {row["file_id"]: row for row in recorded_files(lake, Kind.INBOX)}
    found = []
    for file in settled_files(folder, quiet_seconds=quiet_seconds, now=now):
        row = known.get(file_id(Kind.INBOX, file.name))
        if row is None:
            found.append(file)
        elif (row["bytes"], row["modified_ns"]) != (file.bytes, file.mtime_ns):
            try:
                digest = sha256_of(file.path)
            except OSError:
                continue  # it went away, or is not for us to read; the next look sees it anew
            if digest != (row["refused_sha256"] or row["sha256"]):
                found.append(file)
    return found


def ingest_inbox(
    lake: Lake,
    folder: Path,
    *,
    columns: Mapping[str, str] | None = None,
    take_down: TakeDown = NOTHING,
    quiet_seconds: float = QUIET_SECONDS,
    now: Callable[[], float] = time.time,
) -> InboxReport:
    """Take every settled file in. One that cannot be read is written down (tables query_files, ingestion_failures),
    stands in nobody's way, and is tried again when its content has changed."""
    folder.mkdir(parents=True, exist_ok=True)
    reports: list[IngestReport] = []
    unreadable: list[tuple[str, str]] = []
    waiting = 0
    for file, settled in _files(folder, quiet_seconds, now()):
        if not settled:
            waiting += 1
            continue
        try:
            reports.append(_take_in(lake, file, columns, take_down))
        except FileChanged:
            waiting += 1
        except UnreadableFile as error:
            unreadable.append((storable(file.name), str(error)))
    return InboxReport(tuple(reports), tuple(unreadable), waiting)


def _take_in(lake: Lake, file: SettledFile, columns: Mapping[str, str] | None, take_down: TakeDown) -> IngestReport:
    asked = json.dumps({"text": None, "mapped": dict(columns or {})}, sort_keys=True)
    row = recorded_file(lake, Kind.INBOX, file.name)
    try:
        state = file.path.lstat()
        digest = sha256_of(file.path)
    except OSError as error:
        raise UnreadableFile(f"{storable(file.name)}: cannot be read: {error.strerror or error}") from error
    if row is not None and row["refused_sha256"] == digest and row["refused_columns"] == asked:
        raise UnreadableFile(row["error"])
    try:
        return ingest(lake, file.path, columns=columns, kind=Kind.INBOX, name=file.name, take_down=take_down)
    except FileChanged:
        raise
    except UnreadableFile as error:
        row = recorded_file(lake, Kind.INBOX, file.name)
        if row is None or row["sha256"] != digest:  # else what stands before its break is taken in, which is on record
            refuse(lake, Kind.INBOX, file.name, digest, str(error), state, asked)
        raise


def _files(folder: Path, quiet_seconds: float, now: float) -> Iterator[tuple[SettledFile, bool]]:
    """Query files below a folder by name, and whether they are settled. Links are not followed, so that nothing outside
    the folder is read."""
    for path in _plain_files(folder):
        if path.name.lower().endswith(UNFINISHED) or path.suffix.lower() not in SUFFIXES:
            continue
        try:
            state = path.lstat()
            if not stat.S_ISREG(state.st_mode):
                continue
            # Nobody writes a time stamp that lies far ahead: the clock was moved, or the file comes from elsewhere.
            quiet = abs(now - state.st_mtime)
            settled = quiet >= quiet_seconds and (quiet >= PATIENCE * quiet_seconds or _looks_whole(path, state))
        except OSError:
            continue  # it went away while we looked
        name = path.relative_to(folder).as_posix()
        yield SettledFile(name, path, state.st_size, state.st_mtime_ns), settled


def _plain_files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root) / name for name in sorted(names) if not name.startswith("."))


def _looks_whole(path: Path, state: os.stat_result) -> bool:
    """Whether a file ends as a whole one does. Cheap: its first and last bytes only."""
    with path.open("rb") as stream:
        beginning = stream.read(4)
        stream.seek(max(0, state.st_size - _END))
        end = stream.read(_END)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return state.st_size >= 12 and beginning == _PARQUET_MAGIC and end.endswith(_PARQUET_MAGIC)
    if suffix == ".json":
        return end.rstrip().endswith(b"]")
    if end.endswith(b"\n"):
        return True
    return suffix in (".jsonl", ".ndjson") and _is_json(end.rpartition(b"\n")[2])


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
