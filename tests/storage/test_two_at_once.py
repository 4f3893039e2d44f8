"""Several runs on one table at the same time: no lock error, no row twice, little done twice, nothing lost."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from storage.lake import Lake
from storage.recipe import Recipe
from storage.refresh import BatchResult, Mode, RefreshConfig, RefreshFailed, Report, rebuild, refresh
from storage.tables import FAILURES, TEXT, Column, Table
from tests.storage.things import THINGS, Maker, inputs_of, new_table, rows_of

REPOSITORY = Path(__file__).parents[2]
A = Recipe({"model": "a"})
B = Recipe({"model": "b"})


def word_of(number: int) -> str:
    return f"w{number:03}"


class Meeting(Maker):
    """Works like Maker, and while it works on the batch of that number, something else happens."""

    def __init__(self, recipe: Recipe, happens: Callable[[], object], at: int = 0, bad: Collection[str] = ()) -> None:
        super().__init__(recipe, bad, raises=False)
        self.happens = happens
        self.at = at
        self.batches = 0

    def __call__(self, batch: pa.Table) -> BatchResult:
        if self.batches == self.at:
            self.happens()
        self.batches += 1
        return super().__call__(batch)


def run(
    lake: Lake,
    table: Table,
    words: Sequence[str] | str,
    maker: Maker,
    run_id: str,
    *,
    batch_size: int = 4,
    mode: Mode = Mode.INCREMENTAL,
    lost: Collection[str] = (),
    max_failure_ratio: float = 1.0,
) -> Report:
    config = RefreshConfig(batch_size=batch_size, mode=mode, max_failure_ratio=max_failure_ratio)
    inputs = words if isinstance(words, str) else inputs_of(words)
    return refresh(lake, table, inputs, maker.recipe, maker, config, run_id=run_id, lost=lost)


def rows(lake: Lake, table: Table) -> list[tuple[str, str, str]]:
    found = lake.query(f"SELECT input_id, recipe, run_id FROM {table.qualified} ORDER BY ALL").to_pylist()
    return [(row["input_id"], row["recipe"], row["run_id"]) for row in found]


def ids(lake: Lake, table: Table) -> list[str]:
    return [input_id for input_id, _, _ in rows(lake, table)]


# ---- one process, at exact moments -------------------------------------------------------------------------


def test_what_another_run_finished_meanwhile_is_left_to_it(lake: Lake) -> None:
    table, words = new_table(), [word_of(number) for number in range(40)]
    other = Maker(A)
    maker = Meeting(A, lambda: run(lake, table, words, other, "other"), at=2)
    report = run(lake, table, words, maker, "first")
    assert ids(lake, table) == words
    assert sorted(maker.asked) == words[:12]  # two batches, and the one under way
    assert sorted(other.asked) == words[8:]
    assert (report.new, report.reused, report.failed) == (8, 32, 0)
    # The row that was committed first stays: others may have read it.
    assert [run_id for _, _, run_id in rows(lake, table)] == ["first"] * 8 + ["other"] * 32


def test_a_failure_here_does_not_remove_what_succeeded_there(lake: Lake) -> None:
    table, words = new_table(), [word_of(number) for number in range(8)]
    maker = Meeting(A, lambda: run(lake, table, words, Maker(A), "other"), at=1, bad=words)
    report = run(lake, table, words, maker, "unlucky")
    assert ids(lake, table) == words
    assert lake.read(FAILURES, where="table_name = ?", parameters=[table.label]).num_rows == 0
    assert (report.new, report.reused, report.failed) == (0, 4, 4)


def test_a_success_here_takes_back_the_failure_there(lake: Lake) -> None:
    table, words = new_table(), [word_of(number) for number in range(8)]
    unlucky = Maker(A, words, raises=False)
    maker = Meeting(A, lambda: run(lake, table, words, unlucky, "unlucky"), at=0)
    run(lake, table, words, maker, "lucky")
    assert ids(lake, table) == words
    assert lake.read(FAILURES, where="table_name = ?", parameters=[table.label]).num_rows == 0


def test_an_input_that_came_back_meanwhile_keeps_its_row(lake: Lake) -> None:
    """The first run plans without it, dooms its row, and must not carry that out any more."""
    table, source = new_table(), new_table()
    lake.create(source)
    sql = f"SELECT input_id, word FROM {source.qualified}"

    def give(words: Sequence[str]) -> None:
        rebuild(lake, source, rows_of(words, A), A, run_id="source")

    give(["a", "b"])
    run(lake, table, sql, Maker(A), "before")
    give(["a", "c"])

    def come_back() -> None:
        give(["a", "b", "c"])
        assert run(lake, table, sql, Maker(A), "other").reused == 2

    run(lake, table, sql, Meeting(A, come_back), "first")
    assert ids(lake, table) == ["a", "b", "c"]
    give(["a"])
    assert run(lake, table, sql, Maker(A), "last").removed == 2
    assert ids(lake, table) == ["a"]


KEYED = Column("thing_id", TEXT, "Key that stays the same when the input is edited.", nullable=False)


def edited(word: str) -> pa.Table:
    return pa.table({"input_id": [word], "word": [word]})


class OneKey(Meeting):
    """Every input gives the same key, as a row whose input was edited does."""

    def __call__(self, batch: pa.Table) -> BatchResult:
        result = super().__call__(batch)
        made = result.rows
        return BatchResult(made.set_column(0, "thing_id", pa.array(["key"] * made.num_rows, pa.string())))


def test_an_edit_that_another_run_took_first_is_no_clash_of_keys(lake: Lake) -> None:
    table, source = new_table(), new_table()
    lake.create(source)
    sql = f"SELECT word AS input_id, word FROM {source.qualified}"

    def give(word: str) -> None:
        rebuild(lake, source, rows_of([word], A), A, run_id="source")

    def edit() -> None:
        give("new")
        run(lake, table, sql, OneKey(A, lambda: None), "other")

    give("old")
    run(lake, table, sql, OneKey(A, edit), "first")
    assert ids(lake, table) == ["new by a"]


def test_a_newer_plan_replaces_what_an_older_one_commits_meanwhile(lake: Lake) -> None:
    table, source = new_table(), new_table()
    lake.create(source)
    sql = f"SELECT word AS input_id, word FROM {source.qualified}"
    rebuild(lake, source, rows_of(["new"], A), A, run_id="source")
    older = lambda: refresh(lake, table, edited("old by a"), A, OneKey(A, lambda: None), run_id="older")  # noqa: E731
    run(lake, table, sql, OneKey(A, older), "newer")
    assert ids(lake, table) == ["new by a"]


def test_full_and_lost_rows_are_done_by_whoever_was_asked(lake: Lake) -> None:
    table, words = new_table(), [word_of(number) for number in range(8)]
    run(lake, table, words, Maker(A), "before")
    maker = Meeting(A, lambda: run(lake, table, words, Maker(A), "other", lost=words[:6]))
    report = run(lake, table, words, maker, "full", mode=Mode.FULL)
    assert sorted(maker.asked) == words and report.stale == 8
    assert {run_id for _, _, run_id in rows(lake, table)} == {"full"}


def test_another_recipe_meanwhile_leaves_one_row_for_each_input(lake: Lake) -> None:
    table, words = new_table(), [word_of(number) for number in range(12)]
    maker = Meeting(A, lambda: run(lake, table, words, Maker(B), "b"), at=1)
    run(lake, table, words, maker, "a")
    assert ids(lake, table) == words


def test_two_rebuilds_never_mix_their_sets(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    from storage import rebuild as module

    table = new_table()
    rebuild(lake, table, rows_of(["a", "b", "c"], A), A, run_id="before")
    real = module._changes
    met: list[bool] = []

    def meanwhile(*arguments: object) -> pa.Table:
        found = real(*arguments)  # type: ignore[arg-type]
        if not met:
            met.append(True)
            rebuild(lake, table, rows_of(["a", "x"], A), A, run_id="other")
        return found

    monkeypatch.setattr(module, "_changes", meanwhile)
    rebuild(lake, table, rows_of(["a", "b", "c", "d"], A), A, run_id="last")
    assert ids(lake, table) == ["a", "b", "c", "d"]


# ---- several processes -------------------------------------------------------------------------------------

WORKER = """
import json, sys, time
from pathlib import Path
from storage.lake import Lake
from storage.recipe import Recipe
from storage.refresh import RefreshConfig, refresh
from tests.storage.things import THINGS, Maker, inputs_of

class Slow(Maker):
    def __call__(self, batch):
        time.sleep(0.03)
        return super().__call__(batch)

folder, name, first, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
recipe = Recipe({"model": "a"})
maker = Slow(recipe)
lake = Lake(folder)
print("ready", flush=True)
sys.stdin.readline()
report = refresh(lake, THINGS, inputs_of([f"w{n:03}" for n in range(first, last)]), recipe, maker,
                 RefreshConfig(batch_size=4), run_id=name)
print(json.dumps({"asked": maker.asked, "new": report.new, "reused": report.reused, "total": report.total}))
"""


def workers(folder: Path, ranges: Sequence[tuple[int, int]]) -> list[dict[str, list[str]]]:
    """Start one process for each range of words, all at the same moment; what each of them says."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), f"run {index}", str(first), str(last)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, (first, last) in enumerate(ranges)
    ]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = []
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert "locked" not in errors
        said.append(json.loads(output))
    return said


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_on_the_same_inputs_share_the_work_while_others_read(tmp_path: Path, count: int) -> None:
    words = [word_of(number) for number in range(160)]
    with Lake(tmp_path) as lake:
        lake.create(THINGS)
        stop, torn, waits = threading.Event(), list[str](), list[float]()

        def read() -> None:
            seen = 0
            while not stop.is_set():
                started = time.monotonic()
                found = ids(lake, THINGS)
                waits.append(time.monotonic() - started)
                if len(found) != len(set(found)) or len(found) < seen:
                    torn.append(f"{len(found)} rows after {seen}")
                seen = len(found)
                time.sleep(0.02)

        reader = threading.Thread(target=read)
        reader.start()
        said = workers(tmp_path, [(0, 160)] * count)
        stop.set()
        reader.join()
        assert not torn and len(waits) > 5 and max(waits) < 10
        assert ids(lake, THINGS) == words
        assert sum(one["new"] for one in said) == 160  # type: ignore[misc]
        assert all(one["new"] + one["reused"] == 160 for one in said)  # type: ignore[operator]
        # Doing everything in each of them would be count * 160.
        asked = sum(len(one["asked"]) for one in said)
        assert asked < 160 * (1 + 0.25 * count)
        alone = Maker(A)
        again = run(lake, THINGS, words, alone, "again")
        assert not alone.asked and again.reused == 160 and not again.changed


@pytest.mark.slow
def test_processes_with_overlapping_inputs_end_with_what_a_last_run_wants(tmp_path: Path) -> None:
    workers(tmp_path, [(0, 60), (30, 90)])
    words = [word_of(number) for number in range(90)]
    with Lake(tmp_path) as lake:
        found = ids(lake, THINGS)
        assert len(found) == len(set(found)) and set(words[30:60]) <= set(found) <= set(words)
        run(lake, THINGS, words, Maker(A), "union")
        assert ids(lake, THINGS) == words


def test_a_run_whose_rows_all_fail_beside_another_still_fails(lake: Lake) -> None:
    table, words = new_table(), [word_of(number) for number in range(40)]
    maker = Meeting(A, lambda: run(lake, table, words[:8], Maker(A), "other"), bad=words)
    with pytest.raises(RefreshFailed):
        run(lake, table, words, maker, "unlucky", max_failure_ratio=0.2)
    assert set(words[:8]) <= set(ids(lake, table))
