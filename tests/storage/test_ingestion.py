"""Query files of every format, good and bad, and what becomes of their rows."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import ingestion
from storage.ids import content_id
from storage.ingestion import UnreadableFile, ingest
from storage.lake import Lake
from storage.query_files import BadRow, GoodRow, read_query_file
from storage.tables import INGESTION_FAILURES, RAW_PROMPTS

REAL_QUERIES = Path(__file__).parents[3] / "shared" / "data" / "queries" / "vpo_sft_queries.json"


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    with Lake(tmp_path / "lake") as lake:
        yield lake


def write_json(file: Path, texts: Sequence[str]) -> None:
    file.write_text(json.dumps(texts, indent=1), encoding="utf-8")


def write_json_objects(file: Path, texts: Sequence[str]) -> None:
    file.write_text(json.dumps([{"id": 1, "query": text} for text in texts], ensure_ascii=False), "utf-8")


def write_json_lines(file: Path, texts: Sequence[str]) -> None:
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), encoding="utf-8")


def write_separated(file: Path, texts: Sequence[str]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t" if file.suffix == ".tsv" else ",", quoting=csv.QUOTE_ALL)
        writer.writerow(["uuid", "prompt"])
        writer.writerows(["1", text] for text in texts)


def write_parquet(file: Path, texts: Sequence[str]) -> None:
    parquet.write_table(pa.table({"n": range(len(texts)), "text": list(texts)}), file)


WRITERS: dict[str, Callable[[Path, Sequence[str]], None]] = {
    "strings.json": write_json,
    "objects.json": write_json_objects,
    "lines.jsonl": write_json_lines,
    "commas.csv": write_separated,
    "tabs.tsv": write_separated,
    "rows.parquet": write_parquet,
}
TEXTS = st.lists(st.text(min_size=1, max_size=60).filter(lambda text: text.strip() != ""), min_size=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
@given(texts=TEXTS)
@settings(max_examples=60)
def test_every_format_gives_back_the_texts_that_were_written(name: str, texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        WRITERS[name](file, texts)
        rows = list(read_query_file(file))
    assert [row.text for row in rows if isinstance(row, GoodRow)] == texts
    assert not [row for row in rows if isinstance(row, BadRow)]


@given(texts=TEXTS)
@settings(max_examples=60)
def test_a_text_file_gives_back_its_lines(texts: list[str]) -> None:
    lines = [line for text in texts if (line := text.replace("\n", " ").replace("\r", " ")).strip()]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "queries.txt"
        file.write_bytes("".join(line + "\r\n" for line in lines).encode())
        expected = [line.removeprefix("\ufeff") if index == 0 else line for index, line in enumerate(lines)]
        if not lines or not expected[0].strip():
            return
        rows = list(read_query_file(file))
    assert [(row.line, row.text) for row in rows if isinstance(row, GoodRow)] == list(enumerate(expected, 1))


_numbers = count()


@pytest.fixture(scope="module")
def shared_lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    with Lake(tmp_path_factory.mktemp("shared")) as lake:
        yield lake


@pytest.mark.slow
@given(files=st.lists(TEXTS, min_size=1, max_size=3))
@settings(max_examples=15)
def test_each_text_is_kept_once_with_its_first_source(shared_lake: Lake, files: list[list[str]]) -> None:
    number = next(_numbers)  # makes this example's texts its own
    files = [[f"{number} {text}" for text in texts] for texts in files]
    first: dict[str, tuple[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for index, texts in enumerate(files):
            file = Path(folder) / f"{number}-{index}.json"
            write_json(file, texts)
            fresh = {text for text in texts if text not in first}
            for line, text in enumerate(texts, start=1):
                first.setdefault(text, (file.name, line))
            report = ingest(shared_lake, file)
            assert (report.rows_read, report.new, report.known, report.failed) == (
                len(texts),
                len(fresh),
                len(texts) - len(fresh),
                0,
            )
    rows = shared_lake.read(RAW_PROMPTS, where="starts_with(source, ?)", parameters=[f"{number}-"])
    found = {row["text"]: (row["source"], row["source_line"]) for row in rows.to_pylist()}
    assert found == first
    assert all(row["query_id"] == content_id(row["text"]) for row in rows.to_pylist())


def test_a_file_taken_in_twice_adds_nothing(lake: Lake, tmp_path: Path) -> None:
    file = tmp_path / "queries.txt"
    file.write_text("a cat\na dog\n")
    ingest(lake, file)
    before = lake.snapshot(), lake.read(RAW_PROMPTS)
    report = ingest(lake, file)
    assert (report.new, report.known) == (0, 2)
    assert (lake.snapshot(), lake.read(RAW_PROMPTS)) == before


def bad_rows(lake: Lake) -> list[tuple[int, str]]:
    rows = lake.read(INGESTION_FAILURES).to_pylist()
    return sorted((row["line"], row["error"]) for row in rows)


@pytest.mark.parametrize(
    ("name", "content", "texts", "bad"),
    [
        ("a.txt", b"one\n\n\xff\xfe two\nthree", ["one", "three"], {2: "empty", 3: "UTF-8"}),
        (
            "a.jsonl",
            b'"one"\n{"text": 5}\n{"text": "two"\n{"other": "x"}\n"three"\nnull\n',
            ["one", "three"],
            {2: "no text (int)", 3: "broken JSON", 4: "none of the keys", 6: "no text"},
        ),
        (
            "a.json",
            b'["one", 2, "", ["x"], {"a": 1}, "\\ud800", "b\xff", "three"]',
            ["one", "three"],
            {2: "no text (int)", 3: "empty", 4: "no text (list)", 5: "keys", 6: "UTF-8", 7: "UTF-8"},
        ),
        (
            "a.csv",
            b'id,text\n1,one\n2\n3,"three\nlines"\n4,\xff\n5,x,y\n6,"never closed\n7,seven\n',
            ["one", "three\nlines", "seven"],
            {3: "1 fields instead of 2", 6: "UTF-8", 7: "3 fields", 8: "broken record"},
        ),
        (
            "a.tsv",
            b"Prompt\ttoxicity\none\t0.5\ntwo\tmany\nthree\t\n",
            ["one", "three"],
            {3: "toxicity is 'many'"},
        ),
    ],
)
def test_bad_rows_are_quarantined_with_their_lines_and_the_good_ones_go_in(
    lake: Lake, tmp_path: Path, name: str, content: bytes, texts: list[str], bad: dict[int, str]
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    report = ingest(lake, file)
    assert sorted(lake.read(RAW_PROMPTS)["text"].to_pylist()) == sorted(texts)
    found = bad_rows(lake)
    assert [line for line, _ in found] == sorted(bad)
    assert all(bad[line] in error for line, error in found), found
    assert (report.new, report.failed, report.rows_read) == (len(texts), len(bad), len(texts) + len(bad))


def test_a_quarantined_row_is_there_once_however_often_its_file_comes(lake: Lake, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('"one"\n5\n')
    ingest(lake, file)
    ingest(lake, file)
    assert [line for line, _ in bad_rows(lake)] == [2]


def test_parquet_rows_that_are_no_text_are_quarantined(lake: Lake, tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    broken = pa.array([b"one", b"\xff", None, b"four"], pa.binary())
    parquet.write_table(pa.table({"query": broken}), file)
    assert ingest(lake, file).new == 2
    assert [line for line, _ in bad_rows(lake)] == [2, 3]


def test_vidprom_scores_are_taken_along(lake: Lake, tmp_path: Path) -> None:
    file = tmp_path / "vidprom.csv"
    file.write_text(
        "uuid,prompt,time,toxicity,obscene,identity_attack,insult,threat,sexual_explicit\n"
        'u1,"a cat, walking",Sun Feb 11,0.01,0.02,0.03,0.04,0.05,0.06\n'
        "u2,a dog,Sun Feb 11,,,,,,\n"
    )
    ingest(lake, file)
    cat, dog = sorted(lake.read(RAW_PROMPTS).to_pylist(), key=lambda row: row["source_line"])
    assert (cat["text"], cat["toxicity"], cat["sexual_explicit"]) == ("a cat, walking", 0.01, 0.06)
    assert dog["toxicity"] is None
    assert (cat["source"], cat["source_line"], dog["source_line"]) == ("vidprom.csv", 2, 3)


def test_a_column_may_be_named(lake: Lake, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text,wish\nno,yes\n")
    ingest(lake, file, column="wish")
    assert lake.read(RAW_PROMPTS)["text"].to_pylist() == ["yes"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_query_of_100_000_characters_and_hostile_texts_pass_unchanged(lake: Lake, tmp_path: Path, name: str) -> None:
    texts = [
        "x " * 50_000,
        "<script>alert(1)</script>",
        "'); DROP TABLE raw_prompts; --",
        "a\x00b",
        "[red]x[/]",
    ]
    WRITERS[name](tmp_path / name, texts)
    ingest(lake, tmp_path / name)
    assert sorted(lake.read(RAW_PROMPTS)["text"].to_pylist()) == sorted(texts)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "is empty"),
        ("a.json", b"[]", "holds no queries"),
        ("a.csv", b"text\n", "holds no queries"),
        (
            "a.csv",
            b"id,words\n1,x\n",
            "none of its columns is called text, query, prompt; name one of id, words",
        ),
        ("a.json", b'{"text": "x"}', "a list of strings or objects is needed"),
        ("a.json", b"nonsense", "a list of strings or objects is needed"),
        ("a.parquet", b"nonsense", "no readable Parquet file"),
        ("a.docx", b"x", "unknown kind of file; known are .csv, .json"),
    ],
)
def test_a_file_that_is_no_query_file_gets_one_clear_line(
    lake: Lake, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UnreadableFile) as caught:
        ingest(lake, file)
    assert said in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert lake.count(RAW_PROMPTS) == 0


def test_a_missing_file_and_a_folder_are_refused(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(UnreadableFile, match="no such file"):
        ingest(lake, tmp_path / "nowhere.csv")
    with pytest.raises(UnreadableFile, match="is a folder"):
        ingest(lake, tmp_path)


@pytest.mark.parametrize("cut", ['["one", "two", "thr', '["one", "two",', '["one", "two"', '["one", "two" "three"]'])
def test_what_stands_before_the_break_of_a_json_list_is_kept(lake: Lake, tmp_path: Path, cut: str) -> None:
    file = tmp_path / "cut.json"
    file.write_text(cut)
    with pytest.raises(UnreadableFile) as caught:
        ingest(lake, file)
    assert sorted(lake.read(RAW_PROMPTS)["text"].to_pylist()) == ["one", "two"]
    assert "kept of it: 2 new queries" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_big_files_are_committed_in_parts(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingestion, "BATCH_ROWS", 10)
    file = tmp_path / "a.txt"
    file.write_text("".join(f"query {n % 35}\n" for n in range(95)))
    report = ingest(lake, file)
    assert (report.rows_read, report.new, report.known) == (95, 35, 60)
    assert lake.count(RAW_PROMPTS) == 35


def test_a_list_that_is_longer_than_what_is_read_at_once(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.query_files._CHUNK", 7)
    texts = [f"a käse {'x' * (n % 40)} {n}" for n in range(200)]
    file = tmp_path / "a.json"
    file.write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
    assert [row.text for row in read_query_file(file) if isinstance(row, GoodRow)] == texts


@pytest.mark.skipif(not REAL_QUERIES.exists(), reason="needs the real queries in shared/data")
def test_eleven_thousand_real_queries_go_in_within_five_seconds(lake: Lake) -> None:
    report = ingest(lake, REAL_QUERIES)
    assert report.new == report.rows_read == 11_640
    assert report.seconds < 5
