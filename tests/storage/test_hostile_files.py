"""Files that are made to harm: they end in rows or in one clear message, in bounded time and memory."""

from __future__ import annotations

import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import query_files
from storage.ids import content_id
from storage.ingestion import ingest
from storage.lake import Lake
from storage.query_files import SUFFIXES, BadRow, ColumnNames, GoodRow, UnreadableFile, read_query_file
from storage.tables import INGESTION_FAILURES, RAW_PROMPTS

HOSTILE = [
    "'); DROP TABLE raw_prompts; --",
    "$1 ? :name {x} %s ${x} \\' \" ;",
    "<script>alert(1)</script> [x](javascript:alert(1)) <!-- --> ![](http://x)",
    "\x1b[31mred\x1b[0m \x07 \x00 \x08 \r",
    "\u202eright to left\u202c \u200b zero \ufeff width",
    "зелёный шар катится 红色立方体 مكعب أحمر กล่อง 🟥➡️",
    "../../etc/passwd C:\\Windows\\System32 file:///etc/passwd",
    "=HYPERLINK(1) +1 @SUM(1)",
]


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    with Lake(tmp_path / "lake") as lake:
        yield lake


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_hostile_texts_and_headers_are_text_in_every_column(lake: Lake, tmp_path: Path, suffix: str) -> None:
    import csv

    headers = ["text", *(f"{text} {index}" for index, text in enumerate(HOSTILE))]
    rows = [[text, *HOSTILE] for text in HOSTILE]
    file = tmp_path / f"it's; DROP TABLE x --{suffix}"
    if suffix in (".csv", ".tsv"):
        with file.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream, delimiter="\t" if suffix == ".tsv" else ",", quoting=csv.QUOTE_ALL).writerows(
                [headers, *rows]
            )
    elif suffix == ".parquet":
        parquet.write_table(pa.table([list(column) for column in zip(*rows, strict=True)], names=headers), file)
    else:
        objects = [dict(zip(headers, row, strict=True)) for row in rows]
        lines = "".join(json.dumps(value) + "\n" for value in objects)
        file.write_text(json.dumps(objects) if suffix == ".json" else lines, encoding="utf-8")
    report = ingest(lake, file)
    assert (report.new, report.failed) == (len(HOSTILE), 0)
    found = {row["query_id"]: row["text"] for row in lake.read(RAW_PROMPTS).to_pylist()}
    assert found == {content_id(text): text for text in HOSTILE}
    for index, header in enumerate(headers[1:]):
        try:
            named = list(read_query_file(file, header.strip() if suffix in (".csv", ".tsv") else header))
        except UnreadableFile as error:
            assert "\n" not in str(error) and "\x1b" not in str(error)
        else:
            assert {row.text for row in named if isinstance(row, GoodRow)} == {HOSTILE[index]}
    with pytest.raises(UnreadableFile) as caught:
        ingest(lake, file.rename(tmp_path / f"\x1b[2J\n{suffix}"), column="nowhere\x1b[2J\n")
        raise UnreadableFile("json objects: each row is told on its own")
    assert str(caught.value).isprintable()


def test_hostile_scores_are_bad_rows(lake: Lake, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    values = ["'; DROP TABLE raw_prompts; --", [1], {"a": 1}, "1e999", 10**400, True, "nan", None, ""]
    file.write_text("".join(json.dumps({"text": f"q{n}", "toxicity": v}) + "\n" for n, v in enumerate(values)))
    report = ingest(lake, file)
    assert report.rows_read == len(values)
    assert report.failed >= 4
    assert lake.count(RAW_PROMPTS) == report.new


@pytest.mark.parametrize("name", ["a.csv.gz", "a.zip", "a.parquet.zst", "a.tar.gz"])
def test_packed_files_are_not_opened(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(gzip.compress(b"text\n" + b"bomb" * 1_000_000))
    with pytest.raises(UnreadableFile, match="unknown kind of file"):
        list(read_query_file(file))


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_packed_files_by_another_name_are_not_opened(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    file.write_bytes(gzip.compress(b"text\nbomb\n"))
    with pytest.raises(UnreadableFile, match=r"is compressed \(gzip\); unpack it first"):
        list(read_query_file(file))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../evil.csv", "text\nx\n")
    with pytest.raises(UnreadableFile, match=r"is compressed \(zip\)"):
        list(read_query_file(file))


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    for name in ("pipe.txt", "zero.txt"):
        with pytest.raises(UnreadableFile, match="no plain file"):
            list(read_query_file(tmp_path / name))
    for name in ("loop.txt", "a\x00.txt", "x" * 300 + ".txt"):
        with pytest.raises(UnreadableFile):
            list(read_query_file(tmp_path / name))


def write_bomb(file: Path, kind: str) -> None:
    """A small file that unpacks to something huge."""
    if kind == "many rows of one value":
        column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(30_000_000, np.int8)), pa.array(["a cat"]))
        parquet.write_table(pa.table({"text": column}), file, row_group_size=30_000_000)
    elif kind == "one huge value, often":
        column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int8)), pa.array(["x" * 50_000_000]))
        parquet.write_table(pa.table({"text": column}), file, dictionary_pagesize_limit=1 << 30, compression="zstd")
    elif kind == "one long value, often":
        column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(100_000, np.int8)), pa.array(["x" * 9_000_000]))
        parquet.write_table(pa.table({"text": column}), file, dictionary_pagesize_limit=1 << 30, compression="zstd")
    elif kind == "much of the same":
        column = pa.array([f"{n}" + "x" * 5_000_000 for n in range(100)])
        parquet.write_table(pa.table({"text": column}), file, use_dictionary=False, compression="zstd")
    else:
        assert kind == "prefixes"
        column = pa.array(["x" * 2_000_000 + str(n) for n in range(500)])
        parquet.write_table(
            pa.table({"text": column}),
            file,
            use_dictionary=False,
            column_encoding={"text": "DELTA_BYTE_ARRAY"},
            compression="zstd",
        )


READING = """
import sys
from pathlib import Path
from storage.query_files import UnreadableFile, read_query_file, GoodRow
good = bad = 0
try:
    for row in read_query_file(Path(sys.argv[1])):
        if isinstance(row, GoodRow): good += 1
        else: bad += 1
    said = ""
except UnreadableFile as error:
    said = str(error)
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(int(peak.split()[1]) // 1024, good, bad, said)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("many rows of one value", "unpacks to far more than any file of queries of its size does"),
        ("one huge value, often", ""),
        ("one long value, often", "unpacks to far more"),
        ("much of the same", "unpacks to far more"),
        ("prefixes", "unpacks to far more"),
    ],
)
def test_a_decompression_bomb_costs_little(tmp_path: Path, kind: str, said: str) -> None:
    file = tmp_path / "bomb.parquet"
    write_bomb(file, kind)
    assert file.stat().st_size < 3_000_000
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", READING, str(file)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    megabytes, good, bad, *words = done.stdout.split(maxsplit=3)
    assert int(megabytes) < 1500, done.stdout
    assert time.monotonic() - started < 60
    assert said in "".join(words), done.stdout
    if kind == "one huge value, often":
        assert (int(good), int(bad)) == (0, 100_000)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".txt", ".json"])
def test_a_million_rows_of_junk_end(lake: Lake, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"junk{suffix}"
    junk = np.random.default_rng(0).integers(0, 256, 20_000_000, np.uint8)
    junk[::20] = ord("\n")
    head = {".csv": b"text,toxicity\n", ".json": b"["}.get(suffix, b"")
    file.write_bytes(head + junk.tobytes())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    try:
        report = ingest(lake, file)
        assert report.failed > 0.5 * report.rows_read
        assert lake.count(INGESTION_FAILURES) == report.failed
    except UnreadableFile as error:
        assert suffix == ".json" and "\n" not in str(error)
    assert time.monotonic() - started < 240
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000


def test_a_line_without_end_is_one_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_files, "LONGEST_FIELD", 1000)
    file = tmp_path / "a.txt"
    file.write_text("x" * 50_000 + "\nfine\n" + "y" * 999 + "\n")
    assert [type(row) for row in read_query_file(file)] == [BadRow, GoodRow, GoodRow]
    file = tmp_path / "a.csv"
    file.write_text("text\n" + "x" * 50_000 + "\nfine\n")
    rows = list(read_query_file(file))
    assert isinstance(rows[0], BadRow)
    assert isinstance(rows[-1], GoodRow) and rows[-1].text == "fine"
    monkeypatch.setattr(query_files, "LONGEST_ELEMENT", 1000)
    monkeypatch.setattr(query_files, "_CHUNK", 100)
    file = tmp_path / "a.json"
    file.write_text('["fine", "' + "x" * 50_000)
    with pytest.raises(UnreadableFile, match="no end of it within 1,000 characters"):
        list(read_query_file(file))


def test_json_that_is_nested_too_deeply_or_has_endless_numbers(tmp_path: Path) -> None:
    for name in ("a.json", "a.jsonl"):
        for content in ("[" * 200_000, '[{"text":' * 50_000, "[" + "9" * 100_000 + "]"):
            file = tmp_path / name
            file.write_text(content)
            try:
                assert not any(isinstance(row, GoodRow) for row in read_query_file(file))
            except UnreadableFile as error:
                assert "\n" not in str(error)


# ---- fuzzing -----------------------------------------------------------------------------------------------

PIECES = [b'"', b"'", b",", b"\t", b"\n", b"\r", b"[", b"]", b"{", b"}", b":", b"text", b"query", b"toxicity"]
PIECES += [b"\\u", b"\\ud800", b"\xff", b"\x00", b"\xef\xbb\xbf", b"null", b"1e999", b"-", b'"text":', b"PAR1", b" "]
BYTES = st.one_of(
    st.binary(max_size=400),
    st.lists(st.sampled_from(PIECES), max_size=80).map(b"".join),
    st.lists(st.sampled_from(PIECES), max_size=80).map(lambda parts: b"text,toxicity\n" + b"".join(parts)),
    st.lists(st.sampled_from(PIECES), max_size=80).map(lambda parts: b'["x",' + b"".join(parts)),
)


def rows_or_one_line(file: Path) -> None:
    started = time.monotonic()
    try:
        for row in read_query_file(file, names=ColumnNames(mapped={"text": "query", "toxicity": "x"})):
            if isinstance(row, GoodRow):
                row.text.encode("utf-8")
                assert row.text.strip()
            else:
                (row.error + row.excerpt).encode("utf-8")
                assert len(row.excerpt) <= query_files.EXCERPT_LENGTH
    except UnreadableFile as error:
        assert str(error).isprintable()
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("suffix", sorted(SUFFIXES - {".parquet"}))
@given(content=BYTES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes_are_rows_or_one_clear_line(suffix: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"a{suffix}"
        file.write_bytes(content)
        rows_or_one_line(file)


def whole_parquet() -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"text": ["one", "two", None], "toxicity": [0.1, None, 0.3], "n": [1, 2, 3]})
    parquet.write_table(table, sink)
    return bytes(sink.getvalue().to_pybytes())


WHOLE = whole_parquet()


@pytest.mark.slow
@given(
    changes=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=8),
    cut=st.one_of(st.none(), st.integers(0, len(WHOLE))),
)
@settings(max_examples=40, deadline=None)
def test_a_damaged_parquet_file_is_rows_or_one_clear_line(changes: list[tuple[int, int]], cut: int | None) -> None:
    content = bytearray(WHOLE)
    for at, byte in changes:
        content[at] = byte
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.parquet"
        file.write_bytes(bytes(content[:cut]))
        rows_or_one_line(file)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**62] * 2, pa.timestamp("us")),
        pa.array([1, 2], pa.date32()),
        pa.array([{"text": "x"}] * 2),
        pa.array([["x"]] * 2),
        pa.nulls(2),
        pa.array([b"\xff", b"x"], pa.binary()),
        pa.array(["x", "y"], pa.large_string()),
        pa.array(["x", "y"]).dictionary_encode(),
        pa.array([True, False]),
    ],
)
def test_columns_of_any_type(tmp_path: Path, column: pa.Array) -> None:
    file = tmp_path / "a.parquet"
    for names in (["text", "toxicity"], ["toxicity", "text"]):
        parquet.write_table(pa.table([column, pa.array(["1", "0.5"])], names=names), file)
        rows_or_one_line(file)


def test_a_file_of_prefixes_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    texts = [f"a cat number {n}" for n in range(100)]
    parquet.write_table(
        pa.table({"text": texts}), file, use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"}
    )
    assert [row.text for row in read_query_file(file) if isinstance(row, GoodRow)] == texts
