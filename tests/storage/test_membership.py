"""Which queries are there: those that some file holds now. Corrections, removals, copies, kills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from storage import ingestion
from storage.ids import content_id
from storage.ingestion import FileChanged, UnreadableFile, bring_back, ingest
from storage.lake import Lake, LakeError, Transaction
from storage.query_files import read_query_file
from storage.query_sources import Kind, let_go
from storage.tables import INGESTION_FAILURES, QUERY_FILES, QUERY_LINES, RAW_PROMPTS, TAKEN_DOWN
from storage.take_down import apply_take_down, load_take_down, summary

pytestmark = pytest.mark.slow


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    with Lake(tmp_path / "lake") as lake:
        yield lake


def write(file: Path, texts: Sequence[str]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return file


def texts(lake: Lake) -> list[str]:
    return sorted(lake.read(RAW_PROMPTS)["text"].to_pylist())


def row(lake: Lake, text: str) -> dict[str, Any]:
    (found,) = lake.read(RAW_PROMPTS, where="text = ?", parameters=[text]).to_pylist()
    return dict(found)


def assert_consistent(lake: Lake) -> None:
    """Every query is held by the content of some file, its source is one that holds it, and nothing is left over."""
    held = lake.query(
        f"SELECT l.query_id, f.source, f.sha256, l.line FROM {QUERY_LINES.qualified} l "
        f"JOIN {QUERY_FILES.qualified} f USING (content)"
    ).to_pylist()
    holders = {tuple(entry.values()) for entry in held}
    for query in lake.read(RAW_PROMPTS).to_pylist():
        assert (query["query_id"], query["source"], query["source_sha256"], query["source_line"]) in holders
    contents = set(lake.read(QUERY_FILES)["content"].to_pylist())
    assert set(lake.read(QUERY_LINES)["content"].to_pylist()) <= contents


def test_an_edited_row_is_a_removal_and_an_addition(lake: Lake, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", ["one", "two", "three"])
    ingest(lake, file)
    write(file, ["zero", "one", "two!", "three"])
    report = ingest(lake, file)
    assert (report.new, report.known, report.removed, report.read) == (2, 2, 1, True)
    assert texts(lake) == ["one", "three", "two!", "zero"]
    assert row(lake, "three")["source_line"] == 4
    assert row(lake, "three")["source_sha256"] == report.sha256
    assert_consistent(lake)


def test_a_copy_costs_nothing_and_holds_what_the_original_held(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = write(tmp_path / "a.jsonl", ["one", "two"])
    copy = write(tmp_path / "sub" / "b.jsonl", ["one", "two"])
    ingest(lake, original)
    monkeypatch.setattr(ingestion, "_read", None)  # nothing is read any more
    report = ingest(lake, copy)
    assert (report.read, report.rows_read, report.new, report.known) == (False, 2, 0, 2)
    assert ingest(lake, original).read is False
    monkeypatch.undo()
    write(original, ["one"])
    assert ingest(lake, original).removed == 0
    assert texts(lake) == ["one", "two"]
    assert row(lake, "two")["source"] == "b.jsonl"
    assert_consistent(lake)
    write(copy, ["three"])
    assert ingest(lake, copy).removed == 1
    assert texts(lake) == ["one", "three"]
    assert row(lake, "one")["source"] == "a.jsonl"
    assert_consistent(lake)


def test_files_of_the_same_name_in_two_folders_do_not_replace_each_other(lake: Lake, tmp_path: Path) -> None:
    ingest(lake, write(tmp_path / "a" / "q.jsonl", ["one"]))
    ingest(lake, write(tmp_path / "b" / "q.jsonl", ["two"]))
    assert texts(lake) == ["one", "two"]
    assert set(lake.read(RAW_PROMPTS)["source"].to_pylist()) == {"q.jsonl"}


def test_scores_move_with_the_source(lake: Lake, tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("prompt,toxicity\ncat,0.1\n")
    second.write_text("prompt,toxicity\nx,0.0\ncat,0.7\n")
    ingest(lake, first, kind=Kind.PROFILE, name="a")
    ingest(lake, second, kind=Kind.PROFILE, name="b")
    assert row(lake, "cat")["toxicity"] == 0.1
    assert let_go(lake, Kind.PROFILE, ["b"]) == 0
    cat = row(lake, "cat")
    assert (cat["toxicity"], cat["source"], cat["source_line"]) == (0.7, "b.csv", 3)
    assert_consistent(lake)


def test_files_that_are_named_no_longer_let_go(lake: Lake, tmp_path: Path) -> None:
    for name, kind in (("a", Kind.PROFILE), ("b", Kind.PROFILE), ("c", Kind.COMMAND)):
        ingest(lake, write(tmp_path / f"{name}.jsonl", [name, "all"]), kind=kind, name=name)
    before = lake.snapshot()
    assert let_go(lake, Kind.PROFILE, ["a", "b"]) == 0
    assert lake.snapshot() == before
    assert let_go(lake, Kind.PROFILE, ["b"]) == 1
    assert texts(lake) == ["all", "b", "c"]
    assert row(lake, "all")["source"] == "b.jsonl"
    assert let_go(lake, Kind.PROFILE, []) == 1
    assert texts(lake) == ["all", "c"]
    assert_consistent(lake)


def test_rows_from_before_the_record_stay_until_their_file_comes_again(lake: Lake, tmp_path: Path) -> None:
    file = write(tmp_path / "old.jsonl", ["one", "two"])
    ingest(lake, file)
    with lake.write({"text": "as it was"}) as transaction:
        for table in (QUERY_FILES, QUERY_LINES):
            transaction.execute(f"DELETE FROM {table.qualified}")
    other = write(tmp_path / "other.jsonl", ["two", "three"])
    ingest(lake, other, kind=Kind.PROFILE)
    assert let_go(lake, Kind.PROFILE, []) == 1
    assert texts(lake) == ["one", "two"]
    assert ingest(lake, file).known == 2
    write(file, ["two"])
    assert ingest(lake, file).removed == 1
    assert texts(lake) == ["two"]


def test_the_same_bytes_read_otherwise_are_other_content(lake: Lake, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text,wish\none,two\n,three\n")
    ingest(lake, file)
    assert (texts(lake), lake.count(INGESTION_FAILURES)) == (["one"], 1)
    assert ingest(lake, file, column="wish").removed == 1
    assert (texts(lake), lake.count(INGESTION_FAILURES)) == (["three", "two"], 0)
    assert ingest(lake, file, columns={"text": "nowhere"}).new == 1
    assert texts(lake) == ["one"]
    assert_consistent(lake)


def test_bad_rows_go_with_their_file(lake: Lake, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('"one"\n5\n')
    ingest(lake, file)
    assert lake.count(INGESTION_FAILURES) == 1
    file.write_text('"one"\n"two"\n')
    ingest(lake, file)
    assert lake.count(INGESTION_FAILURES) == 0
    assert texts(lake) == ["one", "two"]


def test_a_correction_that_breaks_off_changes_nothing(lake: Lake, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('["one", "two"]')
    ingest(lake, file)
    before = lake.read(RAW_PROMPTS)
    file.write_text('["one", "three", "fo')
    with pytest.raises(UnreadableFile, match=r"of the file as it was before, everything stays"):
        ingest(lake, file)
    assert lake.read(RAW_PROMPTS) == before
    assert_consistent(lake)
    file.write_text('["one", "three", "four"]')
    assert ingest(lake, file).removed == 1
    assert texts(lake) == ["four", "one", "three"]


def test_a_file_that_breaks_off_says_so_each_time(lake: Lake, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('["one", "tw')
    for _ in range(2):
        with pytest.raises(UnreadableFile, match="kept of it: 1 new queries"):
            ingest(lake, file)
    assert texts(lake) == ["one"]
    file.write_text('["one", "two"]')
    ingest(lake, file)
    assert texts(lake) == ["one", "two"]
    assert lake.count(INGESTION_FAILURES) == 0


@pytest.mark.parametrize("how", ["replaced", "written to", "grown", "removed"])
@pytest.mark.parametrize("known", [False, True])
def test_a_file_that_changes_while_it_is_read_is_refused(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, known: bool
) -> None:
    monkeypatch.setattr(ingestion, "BATCH_ROWS", 10)
    file = write(tmp_path / "a.jsonl", [f"old {n}" for n in range(25)])
    if known:
        ingest(lake, file)
    before = texts(lake) if known else []
    write(file, [f"new {n}" for n in range(40)])
    stamp = file.stat()

    def changing(path: Path, *arguments: Any, **named: Any) -> Iterator[Any]:
        for number, row in enumerate(read_query_file(path, *arguments, **named)):
            if number == 25:
                if how == "replaced":
                    write(tmp_path / "b", [f"alt {n}" for n in range(40)]).replace(file)
                elif how == "written to":
                    write(file, [f"alt {n}" for n in range(40)])
                elif how == "grown":
                    with file.open("a") as stream:
                        stream.write('"more"\n')
                else:
                    file.unlink()
                if file.exists() and how != "grown":
                    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
            yield row

    monkeypatch.setattr(ingestion, "read_query_file", changing)
    with pytest.raises(FileChanged, match=r"changed while it was read; it is taken in at the next refresh"):
        ingest(lake, file)
    assert texts(lake) == before
    assert_consistent(lake)


PROGRAM = """
import os, sys
from pathlib import Path
from storage import ingestion
from storage.lake import Lake, Transaction
ingestion.BATCH_ROWS = 10
lake = Lake(Path(sys.argv[1]))
left = int(sys.argv[3])
class Dying(Transaction):
    def execute(self, *arguments, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)
        return super().execute(*arguments, **named)
import storage.lake
storage.lake.Transaction = Dying
ingestion.ingest(lake, Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_of_a_correction_loses_nothing(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [f"query {n}" for n in range(35)])
    with Lake(tmp_path / "lake") as lake:
        ingest(lake, file)
    write(file, [f"query {n}" for n in range(20, 60)])
    wanted = sorted(f"query {n}" for n in range(20, 60))
    old = {f"query {n}" for n in range(35)}
    kills = 0
    for moment in range(1, 60, 3):
        program = [sys.executable, "-c", PROGRAM, str(tmp_path / "lake"), str(file), str(moment)]
        done = subprocess.run(program, capture_output=True, text=True)
        with Lake(tmp_path / "lake") as lake:
            if done.returncode == 0:
                assert texts(lake) == wanted
                break
            assert done.returncode == -9, done.stderr
            kills += 1
            assert old <= set(texts(lake))
    else:
        raise AssertionError("it never ended")
    assert kills >= 3
    with Lake(tmp_path / "lake") as lake:
        assert_consistent(lake)


# ---- taking down -------------------------------------------------------------------------------------------


def test_listed_queries_go_and_do_not_come_in_and_may_come_back(lake: Lake, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", ["A  Red cube", "a red CUBE", "a ball", "a cone"])
    ingest(lake, file)
    listed = tmp_path / "down.txt"
    listed.write_text(f"\n a red cube\nnobody wrote this\n{content_id('a cone')}\n{'0' * 24}\n")
    down = load_take_down([listed])
    removed = apply_take_down(lake, down)
    report = summary(lake, down, removed)
    assert (report.removed, report.kept_out, report.entries, report.unmatched) == (3, 3, 4, 2)
    assert texts(lake) == ["a ball"]
    later = ingest(lake, write(tmp_path / "b.jsonl", ["A RED CUBE", "a cone", "a new one"]), take_down=down)
    assert (later.new, later.known, later.taken_down) == (1, 0, 2)
    assert texts(lake) == ["a ball", "a new one"]
    snapshot = lake.snapshot()
    assert apply_take_down(lake, down) == 0
    assert bring_back(lake, tmp_path, down) == []
    assert lake.snapshot() == snapshot

    listed.write_text("a red cube\n")
    down = load_take_down([listed])
    apply_take_down(lake, down)
    assert sum(report.new for report in bring_back(lake, tmp_path, down)) == 1
    assert texts(lake) == ["a ball", "a cone", "a new one"]
    apply_take_down(lake, load_take_down([]))
    bring_back(lake, tmp_path)
    assert texts(lake) == ["A  Red cube", "A RED CUBE", "a ball", "a cone", "a new one", "a red CUBE"]
    assert lake.count(TAKEN_DOWN) == 0
    assert_consistent(lake)


def test_a_file_that_has_changed_since_brings_nothing_back(lake: Lake, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", ["one", "two"])
    ingest(lake, file)
    listed = write(tmp_path / "down.jsonl", ["one"])
    apply_take_down(lake, load_take_down([listed]))
    write(file, ["one", "three"])
    apply_take_down(lake, load_take_down([]))
    assert bring_back(lake, tmp_path) == []
    assert texts(lake) == ["two"]


def test_no_text_of_a_query_that_was_taken_down_is_kept(lake: Lake, tmp_path: Path) -> None:
    ingest(lake, write(tmp_path / "a.jsonl", ["a secret wish", "other"]))
    apply_take_down(lake, load_take_down([write(tmp_path / "down.jsonl", ["a secret wish"])]))
    for table in (RAW_PROMPTS, INGESTION_FAILURES, QUERY_FILES, QUERY_LINES, TAKEN_DOWN):
        assert "secret" not in str(lake.read(table).to_pylist()), table.label


def test_a_list_that_cannot_be_read_stops_everything(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="no such file"):
        load_take_down([tmp_path / "nowhere.txt"])
    broken = tmp_path / "down.jsonl"
    broken.write_text('"fine"\n{"text": \n')
    with pytest.raises(UnreadableFile, match=r"down.jsonl: line 2 cannot be read"):
        load_take_down([broken])
    (tmp_path / "empty.txt").touch()
    assert not load_take_down([tmp_path / "empty.txt"])
    ids = tmp_path / "ids.csv"
    ids.write_text(f"query_id\n{content_id('x')}\n")
    assert load_take_down([ids]).names(content_id("x"), "x")


def test_a_failing_last_commit_leaves_the_old_rows(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.jsonl", ["one", "two"])
    ingest(lake, file)
    write(file, ["three"])

    def fail(transaction: Transaction, hashes: object = ()) -> int:
        raise LakeError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(ingestion, "clear_away", fail)
        with pytest.raises(LakeError):
            ingest(lake, file)
    assert texts(lake) == ["one", "two"]
    ingest(lake, file)
    assert texts(lake) == ["three"]


def test_a_correction_of_a_big_file_stays_cheap(lake: Lake, tmp_path: Path) -> None:
    """Attribution of all rows moves to the new content in one statement, not row by row."""
    file = write(tmp_path / "a.jsonl", [f"query {n}" for n in range(20_000)])
    ingest(lake, file)
    write(file, [f"query {n}" for n in range(1, 20_001)])
    report = ingest(lake, file)
    assert (report.new, report.removed) == (1, 1)
    assert report.seconds < 20
    assert pa.compute.count_distinct(lake.read(RAW_PROMPTS)["source_sha256"]).as_py() == 1
