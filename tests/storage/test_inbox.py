"""The inbox: which files are taken in, when, and what never is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from storage.inbox import InboxReport, ingest_inbox, settled_files, unknown_files
from storage.lake import Lake
from storage.tables import INGESTION_FAILURES, QUERY_FILES, RAW_PROMPTS

NOW = 2_000_000_000.0


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    with Lake(tmp_path / "lake") as lake:
        yield lake


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


def put(file: Path, content: bytes | str = '"a query"\n', age: float = 3600.0) -> Path:
    """A file that was last written to so many seconds before NOW."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    os.utime(file, (NOW - age, NOW - age))
    return file


def settled(inbox: Path) -> list[str]:
    return [file.name for file in settled_files(inbox, quiet_seconds=10, now=lambda: NOW)]


def unknown(lake: Lake, inbox: Path) -> list[str]:
    return [file.name for file in unknown_files(lake, inbox, quiet_seconds=10, now=lambda: NOW)]


def take_in(lake: Lake, inbox: Path) -> InboxReport:
    return ingest_inbox(lake, inbox, quiet_seconds=10, now=lambda: NOW)


def texts(lake: Lake) -> list[str]:
    return sorted(lake.read(RAW_PROMPTS)["text"].to_pylist())


def test_only_plain_query_files_that_stand_still_are_seen(inbox: Path, tmp_path: Path) -> None:
    for name in ("a.jsonl", "sub/deep/b.CSV", "c d 'e'.txt"):
        put(inbox / name)
    for name in (".hidden.txt", ".folder/x.txt", "x.txt.part", "x.tmp", "x.csv.crdownload", "x.unfinished", "x.docx"):
        put(inbox / name)
    put(inbox / "fresh.jsonl", age=3)
    put(inbox / "packed.csv.gz")
    put(inbox / "packed.zip")
    os.mkfifo(inbox / "pipe.txt")
    assert settled(inbox) == ["a.jsonl", "c d 'e'.txt", "sub/deep/b.CSV"]
    assert settled(tmp_path / "nowhere") == []


def test_nothing_outside_the_folder_is_read(lake: Lake, inbox: Path, tmp_path: Path) -> None:
    outside = put(tmp_path / "outside" / "secret.txt", "a secret\n")
    (inbox / "link.txt").symlink_to(outside)
    (inbox / "relative.txt").symlink_to("../outside/secret.txt")
    (inbox / "folder").symlink_to(outside.parent)
    (inbox / "passwd.txt").symlink_to("/etc/passwd")
    put(inbox / "%2e%2e%2f..%2fx.txt", "own\n")
    assert take_in(lake, inbox).unreadable == ()
    assert texts(lake) == ["own"]


@pytest.mark.parametrize(
    ("name", "half", "whole"),
    [
        ("a.json", '["one", "tw', '["one", "two"]\n'),
        ("a.jsonl", '"one"\n{"text": "tw', '"one"\n{"text": "two"}'),
        ("a.csv", "text\none\ntw", "text\none\ntwo\n"),
        ("a.txt", "one\ntw", "one\ntwo\n"),
    ],
)
def test_a_half_written_file_is_left_until_it_is_whole(inbox: Path, name: str, half: str, whole: str) -> None:
    put(inbox / name, half, age=50)
    assert settled(inbox) == []
    put(inbox / name, half, age=150)
    assert settled(inbox) == [name]  # it has ended like that for long enough
    put(inbox / name, whole, age=50)
    assert settled(inbox) == [name]


def test_a_parquet_file_without_its_end_is_left(inbox: Path) -> None:
    parquet.write_table(pa.table({"text": ["one"]}), inbox / "a.parquet")
    whole = (inbox / "a.parquet").read_bytes()
    put(inbox / "a.parquet", whole[:-6], age=50)
    assert settled(inbox) == []
    put(inbox / "a.parquet", whole, age=50)
    assert settled(inbox) == ["a.parquet"]


def test_a_clock_that_was_moved_back_does_not_hide_a_file(inbox: Path) -> None:
    put(inbox / "a.jsonl", age=-86_400)
    put(inbox / "b.jsonl", age=-5)
    assert settled(inbox) == ["a.jsonl"]


def test_each_content_is_seen_once_whatever_its_name_and_time(lake: Lake, inbox: Path) -> None:
    put(inbox / "a.jsonl", '"one"\n"two"\n')
    assert unknown(lake, inbox) == ["a.jsonl"]
    assert take_in(lake, inbox).reports[0].new == 2
    assert unknown(lake, inbox) == []
    put(inbox / "a.jsonl", '"one"\n"two"\n', age=1800)  # touched
    assert unknown(lake, inbox) == []
    before = texts(lake)
    take_in(lake, inbox)
    snapshot = lake.snapshot()
    take_in(lake, inbox)
    assert (lake.snapshot(), texts(lake)) == (snapshot, before)
    put(inbox / "a.jsonl", '"one"\n"other"\n', age=1800)
    assert unknown(lake, inbox) == ["a.jsonl"]
    (report,) = take_in(lake, inbox).reports
    assert (report.new, report.removed) == (1, 1)
    assert texts(lake) == ["one", "other"]
    put(inbox / "copy.jsonl", '"one"\n"other"\n')
    assert take_in(lake, inbox).reports[1].read is False
    for name in ("a.jsonl", "copy.jsonl"):
        (inbox / name).unlink()
    take_in(lake, inbox)
    assert texts(lake) == ["one", "other"]  # a mailbox: what was taken in stays


def test_a_file_that_cannot_be_read_is_tried_again_only_when_it_changes(
    lake: Lake, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(inbox / "bad.csv", "id,words\n1,x\n")
    put(inbox / "good.txt", "good\n")
    report = take_in(lake, inbox)
    ((name, error),) = report.unreadable
    assert (name, report.reports[0].new) == ("bad.csv", 1)
    assert "none of its columns is called" in error
    (failure,) = lake.read(INGESTION_FAILURES).to_pylist()
    assert (failure["source"], failure["line"], failure["error"]) == ("bad.csv", 0, error)
    assert unknown(lake, inbox) == []
    snapshot = lake.snapshot()
    with monkeypatch.context() as patch:
        patch.setattr("storage.inbox.ingest", lambda *_, **__: pytest.fail("it was tried again"))
        (inbox / "good.txt").rename(inbox / "good.away")
        assert take_in(lake, inbox).unreadable == report.unreadable
    assert lake.snapshot() == snapshot
    # Read with other columns it may be fine.
    assert ingest_inbox(lake, inbox, columns={"text": "words"}, quiet_seconds=10, now=lambda: NOW).reports[0].new == 1
    put(inbox / "bad.csv", "text\nfine\n")
    assert unknown(lake, inbox) == ["bad.csv"]
    assert take_in(lake, inbox).unreadable == ()
    assert texts(lake) == ["fine", "good"]
    assert lake.count(INGESTION_FAILURES) == 0


def test_a_broken_correction_keeps_what_was_there(lake: Lake, inbox: Path) -> None:
    put(inbox / "a.json", '["one", "two"]')
    take_in(lake, inbox)
    put(inbox / "a.json", '["three", "fo')
    for _ in range(2):
        ((_, error),) = take_in(lake, inbox).unreadable
        assert "of the file as it was before, everything stays" in error
        assert texts(lake) == ["one", "two"]
        assert unknown(lake, inbox) == []
    put(inbox / "a.json", '["one", "two"]', age=1800)
    assert take_in(lake, inbox).unreadable == ()
    assert lake.count(INGESTION_FAILURES) == 0
    (row,) = lake.read(QUERY_FILES).to_pylist()
    assert (row["error"], row["refused_sha256"]) == (None, None)


def test_a_new_file_that_breaks_off_is_kept_up_to_there_and_reported(lake: Lake, inbox: Path) -> None:
    put(inbox / "a.json", '["one", "tw')
    for _ in range(3):
        ((_, error),) = take_in(lake, inbox).unreadable
        assert "kept of it: 1 new queries" in error
        assert unknown(lake, inbox) == []
    assert texts(lake) == ["one"]
    assert [row["line"] for row in lake.read(INGESTION_FAILURES).to_pylist()] == [0]


HOSTILE_NAMES = [
    "'); DROP TABLE raw_prompts; --.jsonl",
    "<script>alert(1)</script>.jsonl".replace("/", "\u2215"),
    "line\nbreak\x1b[31m.jsonl",
    "запрос 查询 \u202e استعلام.jsonl",
    "a" * 240 + ".jsonl",
]


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, os.fsdecode(b"not \xff utf-8.jsonl")])
def test_a_name_can_be_anything(lake: Lake, inbox: Path, name: str) -> None:
    put(inbox / name, json.dumps("a query") + "\n")
    assert unknown(lake, inbox) == [name]
    assert take_in(lake, inbox).reports[0].new == 1
    assert unknown(lake, inbox) == []
    assert texts(lake) == ["a query"]
    put(inbox / name, "5\n")
    take_in(lake, inbox)
    put(inbox / name, b"\x1f\x8b\x08\x00")
    ((_, error),) = take_in(lake, inbox).unreadable
    assert "\n" not in error and "\x1b" not in error
