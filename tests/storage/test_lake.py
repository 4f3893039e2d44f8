"""The lake: transactions, keys, time travel, clear refusals, several processes, a session that only reads."""

from __future__ import annotations

import datetime
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

import storage.extensions
from storage import lake_place
from storage.lake import ExtensionMissing, Lake, LakeError, checked_rows
from storage.recipe import Recipe, stamped
from storage.tables import BRANCH, LINEAGE_NAMES, RAW_PROMPTS, TEXT, TRUNK, Column, Table
from tests.storage.things import THINGS, new_table, rows_of

REPOSITORY = Path(__file__).parents[2]
A = Recipe({"model": "a"})


def rows(words: str) -> pa.Table:
    return stamped(rows_of(list(words), A), A.id, "run")


def words(lake: Lake, table: Table, version: int | None = None) -> str:
    return "".join(sorted(lake.read(table, version=version)["input_id"].to_pylist()))


def test_upsert_insert_delete_and_time_travel(lake: Lake) -> None:
    table = new_table()
    lake.create(table)
    with lake.write({"asset": table.label, "run_id": "r1"}) as transaction:
        transaction.upsert(table, rows("abc"))
    first = lake.snapshot()
    took = lake.read(table, columns=["took"], where="input_id = ?", parameters=["b"])["took"].to_pylist()
    with lake.write({"asset": table.label, "run_id": "r2"}) as transaction:
        assert transaction.insert(table, rows("bd")) == 1
        transaction.upsert(table, rows("c"))
        assert transaction.delete(table, [*rows("a")["thing_id"].to_pylist(), "nobody"]) == 1
    assert (words(lake, table), words(lake, table, first)) == ("bcd", "abc")
    assert lake.read(table, where="input_id = 'b'")["took"].to_pylist() == took, "insert replaced a row"
    assert [commit["message"].get("run_id") for commit in lake.commits(2)] == ["r2", "r1"]
    assert lake.read(table).schema.names == table.arrow_schema.names
    assert lake.read(table)["letters"].type == pa.list_(pa.string())


def test_an_exception_leaves_nothing_behind_and_the_lock_free(lake: Lake) -> None:
    table = new_table()
    lake.create(table)
    before = lake.snapshot()
    with pytest.raises(ZeroDivisionError), lake.write({}) as transaction:
        transaction.upsert(table, rows("a"))
        raise ZeroDivisionError
    assert (lake.snapshot(), words(lake, table)) == (before, "")
    with lake.write({}) as transaction:
        transaction.upsert(table, rows("b"))
    assert words(lake, table) == "b"


def test_readers_do_not_wait_for_a_writer_and_do_not_see_its_work(lake: Lake) -> None:
    table = new_table()
    lake.create(table)
    seen: list[str] = []
    with lake.write({}) as transaction:
        transaction.upsert(table, rows("a"))
        reader = threading.Thread(target=lambda: seen.append(words(lake, table)))
        reader.start()
        reader.join(timeout=30)
    assert seen == [""] and words(lake, table) == "a"


def test_create_is_idempotent_and_adds_columns(lake: Lake, tmp_path: Path) -> None:
    table = new_table()
    lake.create(table)
    with lake.write({}) as transaction:
        transaction.upsert(table, rows("a"))
    before = lake.snapshot()
    lake.create(table)
    assert lake.snapshot() == before
    wider = Table(table.name, table.key, (*table.columns, Column("colour", TEXT, "New.")), "Wider.")
    lake.create(wider)
    assert lake.read(wider)["colour"].to_pylist() == [None]
    assert lake.read(wider, version=before)["colour"].to_pylist() == [None]
    assert lake.export(wider, tmp_path / "folder" / "out.parquet", version=before) == 1
    assert parquet.read_table(tmp_path / "folder" / "out.parquet")["input_id"].to_pylist() == ["a"]


def test_all_tables_of_the_design_can_be_made_twice_over(tmp_path: Path) -> None:
    tables = [*TRUNK, *(table.at("shapes") for table in BRANCH)]
    with Lake(tmp_path) as lake:
        lake.create(*tables)
        for table in tables:
            assert lake.read(table).schema.names == table.arrow_schema.names
            assert set(LINEAGE_NAMES) <= set(table.arrow_schema.names) or not table.lineage
    shutil.move(tmp_path, moved := tmp_path.with_name("moved elsewhere"))
    with Lake(moved) as lake:
        assert lake.count(tables[-1]) == 0, "a lake that was moved opens where it is now"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda good: good.drop_columns("word"), "lack word"),
        (lambda good: good.append_column("extra", good["word"]), "unknown extra"),
        (lambda good: pa.concat_tables([good, good]), "thing_id occurs more than once"),
        (
            lambda good: good.set_column(0, "thing_id", pa.array([None], pa.string())),
            "thing_id: 1 rows have no value",
        ),
        (lambda good: good.set_column(3, "took", pa.array(["many"])), "column took: .*many"),
    ],
)
def test_rows_that_do_not_fit_are_refused_by_name(change: Any, complaint: str) -> None:
    with pytest.raises(LakeError, match=complaint):
        checked_rows(THINGS, change(rows("a")))


def test_bad_sql_missing_tables_and_columns_are_lake_errors(lake: Lake) -> None:
    for sql in ("SELEC 1", "SELECT * FROM nowhere"):
        with pytest.raises(LakeError):
            lake.query(sql)
    with pytest.raises(LakeError, match="never_made"):
        lake.read(Table("never_made", "k", (Column("k", TEXT, ""),), ""))
    with pytest.raises(LakeError, match="no column colour"):
        lake.read(THINGS, columns=["colour"])
    with pytest.raises(LakeError, match="already open"), lake.write({}), lake.write({}):
        pass


@pytest.mark.parametrize("name", ["a b", 'x"; DROP', "../up", "", "Upper", "1st"])
def test_tables_have_plain_names(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name"):
        RAW_PROMPTS.at(name)


def test_times_come_back_in_utc(lake: Lake) -> None:
    table = new_table()
    lake.create(table)
    with lake.write({}) as transaction:
        transaction.upsert(table, rows("a"))
    [at] = lake.read(table)["made_at"].to_pylist()
    assert abs(datetime.datetime.now(datetime.UTC) - at) < datetime.timedelta(minutes=5)


def test_compact_keeps_contents_and_history(lake: Lake) -> None:
    table = new_table()
    lake.create(table)
    snapshots: list[int] = []
    for start in range(0, 60, 20):
        some = [f"w{number}" for number in range(start, start + 20)]
        with lake.write({}) as transaction:
            transaction.upsert(table, stamped(rows_of(some, A), A.id, "run"))
        snapshots.append(lake.snapshot())
    lake.compact(table)
    assert lake.count(table) == 60 and lake.read(table, version=snapshots[1]).num_rows == 40


# ---- the session for people --------------------------------------------------------------------------------


def test_the_read_only_session_reads(lake: Lake) -> None:
    table = new_table()
    lake.create(table)
    with lake.read_only_connection() as session:
        for count in (0, 1):
            assert session.execute(f"SELECT count(*) AS n FROM {table.name} WHERE 1 = ?", [1])["n"].to_pylist() == [
                count
            ]
            with lake.write({}) as transaction:
                transaction.upsert(table, rows("a"))
        assert session.execute(f"DESCRIBE {table.name}").num_rows == 8
        assert session.execute("SELECT content_id(['a']) AS id FROM range(1)").num_rows == 1


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM lake.main.{table}",
        "DROP TABLE {table}",
        "CREATE TABLE x AS SELECT 1",
        "COPY (SELECT 1) TO '{folder}/data/x.csv'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{folder}/data/x.csv'",
        "ATTACH '{folder}/lake.sqlite' AS other (TYPE sqlite)",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "FROM '{folder}/lake.json'",
        "SELECT (SELECT count(*) FROM sqlite_scan('{folder}/lake.sqlite', 'ducklake_table'))",
        "SELECT * FROM query('SELECT * FROM sqlite_scan(1, 2)')",
        "SELECT * FROM glob('/etc/*')",
        "CALL ducklake_expire_snapshots('lake', versions => [1])",
        "SET enable_external_access = true",
        "INSTALL httpfs",
        "SELECT 1; DROP TABLE {table}",
        "",
    ],
)
def test_the_read_only_session_only_reads_the_lake(lake: Lake, sql: str) -> None:
    table = new_table()
    lake.create(table)
    before = lake.snapshot()
    with lake.read_only_connection() as session, pytest.raises(LakeError):
        session.execute(sql.format(table=table.name, folder=str(lake.folder).replace("'", "''")))
    assert lake.snapshot() == before and lake.exists(table)
    assert not (lake.folder / "data" / "x.csv").exists()


# ---- extensions, and things that are in the way ----------------------------------------------------------


def test_a_missing_extension_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET enable_external_access = false")  # as on a machine without network and packages
    monkeypatch.setattr(storage.extensions, "_packaged_files", lambda name: iter(()))
    with pytest.raises(ExtensionMissing, match="pip install duckdb-extension-sqlite-scanner=="):
        storage.extensions.load_extensions(connection, ["sqlite_scanner"])


def test_extensions_must_be_signed_where_no_test_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(lake_place.CONFIG, "allow_unsigned_extensions")
    (row,) = Lake(tmp_path).query("SELECT current_setting('allow_unsigned_extensions') AS trusted").to_pylist()
    assert row["trusted"] is False


def test_a_folder_that_cannot_hold_a_lake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LakeError, match="cannot be made"):
        Lake(tmp_path / "file")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "lake.sqlite").write_bytes(b"no catalog" * 100)
    with pytest.raises(LakeError, match="cannot be opened"):
        Lake(tmp_path / "broken")


# ---- several processes -------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from storage.lake import Lake
from storage.recipe import Recipe, stamped
from tests.storage.things import THINGS, rows_of

name, recipe = sys.argv[2], Recipe({"model": "a"})
lake = Lake(Path(sys.argv[1]))
lake.create(THINGS)
for batch in range(12):
    mine = [f"{name} {batch} {number}" for number in range(15)]
    with lake.write({"run_id": name}) as transaction:
        transaction.upsert(THINGS, stamped(rows_of(["shared", *mine], recipe), recipe.id, name))
"""

HOLDER = """
import sys
from pathlib import Path
from storage.lake import Lake

with Lake(Path(sys.argv[1])).write({}):
    print("holding", flush=True)
    sys.stdin.read()
"""


def test_two_processes_make_the_lake_and_write_at_once(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name], cwd=REPOSITORY, stderr=subprocess.PIPE)
        for name in ("one", "two")
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors.decode()
    with Lake(tmp_path) as lake:
        found = lake.read(THINGS)["input_id"].to_pylist()
        assert len(found) == len(set(found)) == 2 * 12 * 15 + 1
        assert {commit["message"].get("run_id") for commit in lake.commits(24)} >= {"one", "two"}


def test_a_writer_that_waits_too_long_says_for_what_and_a_killed_one_frees_the_lock(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"holding\n"
    with Lake(tmp_path, lock_timeout=0.2) as lake:
        with pytest.raises(LakeError, match="another process has been writing"):
            lake.create(THINGS)
        holder.kill()
        holder.communicate()
        lake.create(THINGS)
        assert lake.exists(THINGS)
