"""A lake with its catalog in Postgres and its files in an object store: several writers, and servers that fail."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pytest

from services.local_servers.postgres import LocalPostgres
from services.local_servers.running import LocalObjectStore
from storage.lake import Lake, LakeError, LakeUnreachable, Transaction
from storage.lake_place import SharedPlace
from storage.object_store import ObjectStoreAccess
from tests.cluster.conftest import KEYS
from tests.cluster.lost_answer import LossyWay
from tests.cluster.writer import WORDS, rows

pytestmark = pytest.mark.cluster
REPOSITORY = Path(__file__).parents[2]
Places = Callable[..., SharedPlace]


def words(*keys: str) -> pa.Table:
    return pa.table({"word_id": list(keys), "word": ["w"] * len(keys)})


def put(*keys: str) -> Callable[[Transaction], None]:
    return lambda transaction: transaction.upsert(WORDS, words(*keys))


def by_way_of(way: LossyWay, place: SharedPlace) -> SharedPlace:
    """The same lake, with another way to its Postgres."""
    address = urlsplit(place.catalog)
    catalog = address._replace(netloc=f"{address.username}@{address.hostname}:{way.port}").geturl()
    return SharedPlace(catalog, place.data.removesuffix("/data/"), place.folder, place.access)


def keys_in(lake: Lake, version: int | None = None) -> list[str]:
    return sorted(lake.read(WORDS, version=version)["word_id"].to_pylist())


def start_writer(place: SharedPlace, folder: Path, name: str, batches: int, count: int) -> subprocess.Popen[str]:
    address, data = place.catalog, place.data.removesuffix("/data/")
    arguments = [address, data, str(folder), place.access.endpoint_url or "", name, str(batches), str(count)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.cluster.writer", *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_what_one_machine_writes_another_reads_now_and_as_of_before(place: Places) -> None:
    with Lake(place()) as here, Lake(place()) as there:
        here.create(WORDS)
        here.commit({"asset": "words", "run_id": "r1"}, put("a", "b"))
        first = there.snapshot()
        there.commit({"asset": "words", "run_id": "r2"}, put("b", "c"))
        assert keys_in(here) == ["a", "b", "c"]
        assert keys_in(here, first) == ["a", "b"]
        assert [commit["message"] for commit in here.commits(2)] == [
            {"asset": "words", "run_id": "r2"},
            {"asset": "words", "run_id": "r1"},
        ]
        with there.read_only_connection() as session:
            assert session.execute("SELECT count(*) AS n FROM words")["n"].to_pylist() == [3]
            for forbidden in (
                "FROM duckdb_secrets()",
                "FROM read_text('s3://lake/x')",
                "FROM postgres_query('x', 'y')",
            ):
                with pytest.raises(LakeError):
                    session.execute(forbidden)


@pytest.mark.parametrize("store", ["folder", "s3"])
def test_four_writers_one_of_them_killed_lose_nothing_and_write_nothing_twice(
    place: Places, tmp_path: Path, store: str
) -> None:
    batches, count, names = 12, 50, ("w0", "w1", "w2", "killed")
    made = (lambda: place(str(tmp_path / "data"))) if store == "folder" else place
    writers = {name: start_writer(made(), tmp_path / name, name, batches, count) for name in names}
    said: dict[str, list[str]] = {name: [] for name in names}
    stream = writers["killed"].stdout
    assert stream is not None
    for line in stream:  # killed in the middle of its work
        said["killed"].append(line.strip())
        if line.strip() == "3":
            writers["killed"].send_signal(signal.SIGKILL)
    for name in names[:3]:
        out, err = writers[name].communicate(timeout=120)
        assert writers[name].returncode == 0, err
        said[name] = out.split()
    writers["killed"].communicate()
    assert writers["killed"].returncode == -signal.SIGKILL
    with Lake(made()) as lake:
        found = keys_in(lake)
        assert len(found) == len(set(found)), "a key is there twice"
        for name in names:
            acknowledged = [int(word) for word in said[name] if word != "ready"]
            expected = {key for batch in acknowledged for key in rows(name, batch, count)["word_id"].to_pylist()}
            assert expected <= set(found), f"{name} lost what it was told is committed"
        assert {key for key in found if key.startswith("shared")} == {f"shared-{batch}" for batch in range(batches)}
        of_killed = [key for key in found if key.startswith("killed-")]
        assert len(of_killed) % (count - 1) == 0, "a batch was committed in part"


DUCKDB_CRASHED = "database has been invalidated because of a previous fatal error"
"""DuckDB's Postgres extension sometimes ends the process when its server is cut off in the middle of an answer."""


def test_postgres_restarted_in_the_middle_of_four_writers(
    place: Places, postgres: LocalPostgres, tmp_path: Path
) -> None:
    batches, count = 12, 20
    writers = [start_writer(place(), tmp_path / str(i), f"w{i}", batches, count) for i in range(4)]
    stream = writers[0].stdout
    assert stream is not None
    for line in stream:
        if line.strip() in ("2", "6"):
            postgres.restart("immediate" if line.strip() == "2" else "fast")
    for i, writer in enumerate(writers):
        _, err = writer.communicate(timeout=120)
        if writer.returncode == -signal.SIGABRT and DUCKDB_CRASHED in err:  # as after any crash: start it again
            writer = start_writer(place(), tmp_path / f"{i} again", f"w{i}", batches, count)
            _, err = writer.communicate(timeout=120)
        assert writer.returncode == 0, err
    with Lake(place()) as lake:
        found = keys_in(lake)
    wanted = {key for i in range(4) for b in range(batches) for key in rows(f"w{i}", b, count)["word_id"].to_pylist()}
    assert sorted(wanted) == found


def test_a_commit_that_was_cut_off_is_not_half_there_and_is_done_again(place: Places, postgres: LocalPostgres) -> None:
    with Lake(place()) as lake:
        lake.create(WORDS)
        with pytest.raises(LakeUnreachable, match="does not answer, or was restarted"), lake.write({}) as transaction:
            transaction.upsert(WORDS, words("lost"))
            postgres.restart()
        assert keys_in(lake) == []
        tries = []

        def work(transaction: Transaction) -> None:
            transaction.upsert(WORDS, words("kept"))
            tries.append(1)
            if len(tries) == 1:
                postgres.restart("immediate")

        lake.commit({}, work)
        assert (keys_in(lake), len(tries)) == (["kept"], 2)


@pytest.mark.parametrize("store", ["folder", "s3"])
def test_a_commit_whose_answer_is_lost_on_its_way_is_found_in_the_history_and_keeps_its_files(
    place: Places, postgres: LocalPostgres, tmp_path: Path, store: str
) -> None:
    """DuckLake takes such a commit for failed and would remove the files that the catalog names by then."""
    made = place(str(tmp_path / "data")) if store == "folder" else place()
    before, kept = rows("before", 0, 50), rows("kept", 1, 50)
    wanted = sorted({*before["word_id"].to_pylist(), *kept["word_id"].to_pylist()})
    with closing(LossyWay(postgres.port)) as way, Lake(by_way_of(way, made)) as lake:
        tries = []

        def work(transaction: Transaction) -> None:
            transaction.upsert(WORDS, kept)
            tries.append(1)
            way.loses_the_next = True

        lake.create(WORDS)
        lake.commit({}, put(*before["word_id"].to_pylist(), "shared-1"))
        lake.commit({}, work)
        assert (way.lost, len(tries)) == (1, 1)
        assert keys_in(lake) == wanted
        lake.commit({}, put("after"))
    with Lake(made) as lake:
        assert keys_in(lake) == sorted([*wanted, "after"])


def test_an_object_store_that_answers_503_for_a_while_is_waited_for(
    place: Places, object_store: LocalObjectStore
) -> None:
    with Lake(place()) as lake:
        lake.create(WORDS)
        lake.commit({}, put(*"abc"))
        for action in (lambda: lake.commit({}, put(*(f"d{i}" for i in range(100)))), lambda: keys_in(lake)):
            object_store.begin_outage()
            threading.Timer(2, object_store.end_outage).start()
            started = time.monotonic()
            action()
            assert time.monotonic() - started > 1.5, "the outage was not met"
        assert len(keys_in(lake)) == 103


def test_an_object_store_that_stays_away_is_named_and_no_key_is_told(
    place: Places, object_store: LocalObjectStore
) -> None:
    impatient = ObjectStoreAccess(endpoint_url=object_store.url, patience=1)
    with Lake(place(access=impatient)) as lake:
        lake.create(WORDS)
        object_store.begin_outage()
        try:
            with pytest.raises(LakeError, match="object store") as failed:
                lake.commit({}, put(*(f"x{i}" for i in range(100))))
        finally:
            object_store.end_outage()
        assert "503" in str(failed.value)
        assert not [secret for secret in KEYS.values() if secret in str(failed.value)]
        assert keys_in(lake) == []


def test_a_server_that_is_not_there_or_lets_nobody_in_is_named(
    place: Places, access: ObjectStoreAccess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = SharedPlace("postgresql://vpo@127.0.0.1:1/lake", "s3://lake/x", tmp_path, ObjectStoreAccess(patience=0.1))
    with pytest.raises(LakeUnreachable, match="see that it runs"):
        Lake(nobody)
    monkeypatch.setenv("PGPASSWORD", "wrong-password")
    with pytest.raises(LakeError, match="PGPASSWORD") as refused:
        Lake(place())
    assert "wrong-password" not in str(refused.value)
    monkeypatch.setenv("PGPASSWORD", KEYS["PGPASSWORD"])
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(LakeError, match="needs AWS_SECRET_ACCESS_KEY in the environment"):
        Lake(place())


def test_files_that_have_a_catalog_are_not_given_a_second_one(
    place: Places, postgres: LocalPostgres, access: ObjectStoreAccess, tmp_path: Path
) -> None:
    with Lake(place()) as lake:
        lake.create(WORDS)
        data = lake.place.data.removesuffix("/data/")
    with pytest.raises(LakeError, match="has lost its catalog"):
        Lake(SharedPlace(postgres.create_database("empty"), data, tmp_path, access))
