"""Maintenance of a lake: what goes, what stays, and that it may be killed or run beside others."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from storage.lake import Lake, LakeError
from storage.maintenance import Retention, maintain, size_of, values_in_use
from storage.recipe import Recipe, stamped
from storage.refresh import RefreshConfig, refresh
from storage.retention_log import FILE, note_expired, when_expired
from storage.tables import FAILURES, RECIPES, THROUGHPUT
from tests.storage.things import THINGS, Maker, inputs_of, rows_of

REPOSITORY = Path(__file__).parents[2]
A = Recipe({"model": "a"})
NOW = Retention(keep_days=0, keep_snapshots_min=1, grace_hours=0)


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    with Lake(tmp_path / "lake") as lake:
        lake.create(THINGS, RECIPES, FAILURES, THROUGHPUT)
        yield lake


def fill(lake: Lake, batches: int = 12) -> list[int]:
    """Batches of 40 rows, then most of the earlier ones taken out again; the snapshots after each batch."""
    snapshots = []
    for batch in range(batches):
        words = [f"w{batch}-{number}" for number in range(40)]
        with lake.write({"run_id": str(batch), "asset": "things"}) as transaction:
            transaction.upsert(THINGS, stamped(rows_of(words, A), A.id, "run"))
        snapshots.append(lake.snapshot())
    with lake.write({}) as transaction:
        transaction.execute(f"DELETE FROM {THINGS.qualified} WHERE word LIKE 'w1-%' OR word LIKE 'w2-%'")
    return snapshots


def content(lake: Lake, version: int | None = None) -> pa.Table:
    return lake.read(THINGS, version=version).sort_by("thing_id")


def test_old_snapshots_go_and_needed_ones_stay_as_they_were(lake: Lake) -> None:
    snapshots = fill(lake)
    needed = snapshots[4]
    before, then = content(lake), content(lake, needed)
    last = lake.snapshot()

    planned = maintain(lake, NOW, {needed}, dry_run=True)
    assert planned.expired > 10 and planned.spared == 1
    assert lake.snapshot() == last and lake.has_snapshot(snapshots[0])
    assert planned.bytes_before == planned.bytes_after

    done = maintain(lake, NOW, {needed})
    assert (done.expired, done.spared, done.problems) == (planned.expired, 1, ())
    assert done.files_removed > 5 and done.files_after < done.files_before
    assert done.bytes_after < done.bytes_before
    assert content(lake).equals(before) and content(lake, needed).equals(then)
    with pytest.raises(LakeError, match=rf"snapshot {snapshots[3]} .* was taken by retention on \d{{4}}-.*are left"):
        lake.read(THINGS, version=snapshots[3])
    with pytest.raises(LakeError, match="has not been made yet"):
        lake.read(THINGS, version=10_000)

    again = maintain(lake, NOW, {needed})
    assert again.expired <= 2 and content(lake, needed).equals(then)  # what maintenance itself committed
    maintain(lake, NOW, set())
    assert not lake.has_snapshot(needed) and content(lake).equals(before)


def test_young_snapshots_the_last_ones_and_young_files_stay(lake: Lake) -> None:
    fill(lake)
    count = len(lake.commits(1000))
    assert maintain(lake, Retention(keep_days=1, keep_snapshots_min=1, grace_hours=0), ()).expired == 0
    done = maintain(lake, Retention(keep_days=0, keep_snapshots_min=6, grace_hours=24), ())
    assert done.expired >= count - 6 and done.files_removed == 0
    stray = lake.folder / "data" / "main" / "things" / "ducklake-of-a-killed-writer.parquet"
    stray.write_bytes(b"half")
    maintain(lake, Retention(grace_hours=24), ())
    assert stray.exists()
    yesterday = time.time() - 2 * 86_400
    os.utime(stray, (yesterday, yesterday))
    maintain(lake, Retention(grace_hours=24), ())
    assert not stray.exists()


def test_a_clock_moved_back_takes_nothing_that_is_young(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(lake, 3)

    class Earlier(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Earlier:
            return super().now(tz) - datetime.timedelta(days=400)

    monkeypatch.setattr("storage.maintenance.datetime.datetime", Earlier)
    before = content(lake)
    done = maintain(lake, Retention(keep_days=1, keep_snapshots_min=1, grace_hours=1), ())
    assert done.expired == 0 and done.files_removed == 0 and content(lake).equals(before)


def test_bookkeeping_is_tidied(lake: Lake) -> None:
    refresh(lake, THINGS, inputs_of(["a", "b"]), A, Maker(A), RefreshConfig(), run_id="run")
    now = datetime.datetime.now(datetime.UTC)
    paces = [
        {"throughput_id": f"{n}", "table_name": "things", "recipe": A.id, "rows": n, "seconds": 1.0, "at": at}
        for n, at in ((n, now - datetime.timedelta(hours=n + 1)) for n in range(59))
    ]
    forgotten = Recipe({"model": "forgotten"})
    day = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=3)
    rows = pa.Table.from_pylist(
        [{"recipe": forgotten.id, "parts": "{}", "first_seen": day}], schema=RECIPES.arrow_schema
    )
    with lake.write({}) as transaction:
        transaction.insert(RECIPES, rows)
        transaction.insert(THROUGHPUT, pa.Table.from_pylist(paces, schema=THROUGHPUT.arrow_schema))
        transaction.execute(f"UPDATE {RECIPES.qualified} SET first_seen = ?", [day])
    planned = maintain(lake, Retention(), (), dry_run=True)
    done = maintain(lake, Retention(), ())
    assert (planned.recipes, planned.throughput) == (done.recipes, done.throughput) == (1, 10)
    assert lake.read(RECIPES)["recipe"].to_pylist() == [A.id]
    assert set(lake.read(THROUGHPUT)["rows"].to_pylist()) == {2, *range(49)}
    assert maintain(lake, Retention(), ()).throughput == 0


def test_values_in_use_are_those_of_all_tables(lake: Lake) -> None:
    fill(lake, 1)
    assert len(values_in_use(lake, "word")) == 40
    assert values_in_use(lake, "nowhere") == set()


def test_a_line_of_the_log_that_was_cut_hides_no_other(tmp_path: Path) -> None:
    note_expired(tmp_path, [1, 2, 3, 7])
    with (tmp_path / FILE).open("a") as stream:
        stream.write('{"at": "20')
    assert when_expired(tmp_path, 2) is not None and when_expired(tmp_path, 7) is not None
    assert when_expired(tmp_path, 5) is None


MAINTAINER = """
import sys
from pathlib import Path
from storage.lake import Lake
from storage.maintenance import Retention, maintain
lake = Lake(Path(sys.argv[1]))
print("ready", flush=True)
maintain(lake, Retention(0, 1, 0), {int(sys.argv[2])})
print("done", flush=True)
"""


@pytest.mark.slow
def test_it_may_be_killed_at_any_moment(tmp_path: Path) -> None:
    with Lake(tmp_path) as lake:
        lake.create(THINGS, RECIPES, FAILURES, THROUGHPUT)
        needed = fill(lake)[4]
        before, then = content(lake), content(lake, needed)
    ended = 0
    for step in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", MAINTAINER, str(tmp_path), str(needed)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.02 + 0.03 * step)
        process.send_signal(signal.SIGKILL)
        ended += "done" in process.communicate()[0]
        with Lake(tmp_path, lock_timeout=20) as lake:
            assert content(lake).equals(before) and content(lake, needed).equals(then)
            fill(lake, 2)
            before = content(lake)
    assert ended < 6  # else nothing was killed
    with Lake(tmp_path) as lake:
        maintain(lake, NOW, {needed})
        maintain(lake, NOW, {needed})
        assert content(lake, needed).equals(then)
        kept = lake.query("SELECT data_file FROM ducklake_list_files('lake', 'things')").num_rows
        assert kept <= size_of(lake.folder / "data")[0] <= kept + 12


@pytest.mark.slow
def test_beside_a_running_refresh_nothing_is_lost(tmp_path: Path) -> None:
    from tests.storage.test_two_at_once import WORKER

    with Lake(tmp_path) as lake:
        lake.create(THINGS, RECIPES, FAILURES, THROUGHPUT)
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), "worker", "0", "120"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert worker.stdout is not None and worker.stdin is not None and worker.stdout.readline() == "ready\n"
        worker.stdin.write("\n")
        worker.stdin.flush()
        times = 0
        while worker.poll() is None:
            assert maintain(lake, Retention(0, 3, 1), ()).problems == ()
            times += 1
            time.sleep(0.1)
        _, errors = worker.communicate()
        assert worker.returncode == 0, errors
        assert times >= 2
        assert content(lake).num_rows == 120
