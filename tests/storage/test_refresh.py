"""Refresh: whatever happens on the way, the table ends as if made from scratch, and nothing is made twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.lake import Lake, LakeError
from storage.recipe import Recipe
from storage.refresh import (
    BatchFunction,
    BatchResult,
    Failure,
    Mode,
    Progress,
    RefreshConfig,
    RefreshError,
    RefreshFailed,
    Report,
    StopRefresh,
    data_version,
    plan,
    rebuild,
    refresh,
)
from storage.tables import FAILURES, RAW_PROMPTS, Table
from tests.storage.things import Maker, inputs_of, new_table, rows_of

REPOSITORY = Path(__file__).parents[2]
A = Recipe({"model": "a", "settings": {"temperature": 0.5}})
B = Recipe({"model": "b", "settings": {"temperature": 0.5}})
LENIENT = RefreshConfig(max_failure_ratio=1.0, max_attempts=1000, batch_size=3)
EXAMPLES = int(os.environ.get("VPO_TEST_EXAMPLES", "8"))  # raise it when changing storage/refresh.py
SLOW_TO_START = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def made(lake: Lake, table: Table) -> dict[tuple[str, str], str]:
    """What the table holds: (input, recipe) -> word; fails if a row is there twice."""
    rows = lake.read(table).to_pylist()
    found = {(row["input_id"], row["recipe"]): row["word"] for row in rows}
    assert len(found) == len(rows)
    return found


def expected(words: Iterable[str], recipe: Recipe) -> dict[tuple[str, str], str]:
    return {(word, recipe.id): f"{word} by {recipe.parts['model']}" for word in words}


def quarantined(lake: Lake, table: Table) -> dict[str, int]:
    rows = lake.read(FAILURES, where="table_name = ?", parameters=[table.label]).to_pylist()
    return {row["input_id"]: row["attempts"] for row in rows}


def run(
    lake: Lake,
    table: Table,
    words: Iterable[str],
    maker: Maker,
    config: RefreshConfig = LENIENT,
    run_id: str = "run",
) -> Report:
    return refresh(lake, table, inputs_of(list(words)), maker.recipe, maker, config, run_id=run_id)


# ---- properties --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    words: frozenset[str]
    recipe: Recipe
    bad: frozenset[str]
    raises: bool
    dies_after: int | None
    backwards: bool


WORDS = st.frozensets(st.sampled_from("abcde"), max_size=5)
STEPS = st.builds(
    Step,
    words=WORDS,
    recipe=st.sampled_from([A, B]),
    bad=st.frozensets(st.sampled_from("abcde"), max_size=2),
    raises=st.booleans(),
    dies_after=st.none() | st.integers(0, 2),
    backwards=st.booleans(),
)


class PowerCut(BaseException):
    """Stands for the end of the process: not an error that anything may handle."""


def take(lake: Lake, table: Table, step: Step, config: RefreshConfig) -> Maker:
    """Run one step; raises PowerCut if it dies on the way."""
    maker = Maker(step.recipe, step.bad, raises=step.raises)

    def mapper(function: BatchFunction, batches: Iterable[pa.Table]) -> Iterator[tuple[pa.Table, BatchResult]]:
        results = [(batch, function(batch)) for batch in batches]
        for number, result in enumerate(reversed(results) if step.backwards else results):
            if step.dies_after == number:
                raise PowerCut
            yield result
            if number == 0:
                yield result  # the same batch delivered again changes nothing

    refresh(lake, table, inputs_of(step.words), step.recipe, maker, config, run_id="run", mapper=mapper)
    return maker


@pytest.mark.slow
@settings(max_examples=EXAMPLES, suppress_health_check=SLOW_TO_START)
@given(steps=st.lists(STEPS, min_size=1, max_size=3))
def test_any_history_ends_as_if_made_from_scratch(lake: Lake, steps: list[Step]) -> None:
    table = new_table()
    lake.create(table)
    for step in steps:
        before = made(lake, table)
        try:
            maker = take(lake, table, step, LENIENT)
        except PowerCut:
            had = {word for word, _ in before}
            assert had <= {word for word, _ in made(lake, table)}, "a row vanished before its end"
            continue
        committed = {word for word, recipe in before if recipe == step.recipe.id}
        assert not committed & set(maker.asked), "a row was made twice"
        bad = step.bad - committed  # what is made already cannot fail any more
        assert made(lake, table) == expected(step.words - bad, step.recipe)
        assert set(quarantined(lake, table)) == step.words & bad
    last = steps[-1]
    if last.dies_after is None:
        last = replace(last, bad=bad)
        scratch = new_table()
        take(lake, scratch, last, LENIENT)
        assert data_version(lake, table) == data_version(lake, scratch)
        assert take(lake, table, last, LENIENT).asked == ([] if last.raises else sorted(last.words & last.bad))


@settings(max_examples=EXAMPLES // 2, suppress_health_check=SLOW_TO_START)
@given(steps=st.lists(STEPS, min_size=1, max_size=3))
def test_append_keeps_the_rows_of_other_recipes(lake: Lake, steps: list[Step]) -> None:
    table = new_table()
    lake.create(table)
    config = RefreshConfig(mode=Mode.APPEND, max_failure_ratio=1.0, max_attempts=1000, batch_size=3)
    for step in steps:
        before = made(lake, table)
        kept = {key: word for key, word in before.items() if key[1] != step.recipe.id}
        bad = step.bad - {word for word, recipe in before if recipe == step.recipe.id}  # what is made cannot fail
        try:
            take(lake, table, step, config)
        except PowerCut:
            assert kept.items() <= made(lake, table).items()
            continue
        assert made(lake, table) == kept | expected(step.words - bad, step.recipe)


@settings(max_examples=EXAMPLES // 2, suppress_health_check=SLOW_TO_START)
@given(versions=st.lists(st.dictionaries(st.sampled_from("abcde"), st.sampled_from("xy")), min_size=1, max_size=3))
def test_rebuild_makes_the_table_equal_and_writes_only_changes(lake: Lake, versions: list[dict[str, str]]) -> None:
    table = new_table()
    before: dict[str, str] = {}
    for number, version in enumerate(versions):
        rows = pa.Table.from_pylist(
            [{"thing_id": key, "word": word, "letters": None, "took": number} for key, word in version.items()],
            schema=pa.schema([f for f in table.arrow_schema if f.name in ("thing_id", "word", "letters", "took")]),
        )
        report = rebuild(lake, table, rows, A, run_id=f"run {number}")
        found = {row["thing_id"]: row for row in lake.read(table).to_pylist()}
        assert {key: row["word"] for key, row in found.items()} == version
        fresh = {key for key, row in found.items() if row["run_id"] == f"run {number}"}
        assert fresh == {key for key, word in version.items() if before.get(key) != word}
        assert (report.total, report.new, report.removed) == (
            len(version),
            len(version.keys() - before.keys()),
            len(before.keys() - version.keys()),
        )
        assert report.reused == len(version.items() & before.items())
        before = version


# ---- plan --------------------------------------------------------------------------------------------------


def test_plan_counts_and_names_what_changed(lake: Lake) -> None:
    table = new_table()
    run(lake, table, "abcdef", Maker(A, "f"))
    before = lake.snapshot()
    same = plan(lake, table, inputs_of("bcdefgh"), A, LENIENT, lost=["b"])
    assert (same.new, same.stale, same.reused, same.orphaned, same.failed) == (2, 1, 3, 1, 1)
    assert same.todo["input_id"].to_pylist() == ["b", "f", "g", "h"]
    assert same.changed == () and same.expected_seconds and same.expected_seconds > 0
    other = plan(lake, table, inputs_of("abc"), B, LENIENT)
    assert (other.new, other.stale, other.reused, other.orphaned) == (0, 3, 0, 2)
    assert other.changed == ("model",)
    assert lake.snapshot() == before, "planning wrote something"


def test_plan_before_the_first_run_needs_no_table(lake: Lake) -> None:
    table = new_table()
    first = plan(lake, table, inputs_of("ab"), A, LENIENT)
    assert (first.new, first.todo.num_rows, first.expected_seconds) == (2, 2, None)
    assert not lake.exists(table)


def test_nothing_to_do_writes_nothing(lake: Lake) -> None:
    table = new_table()
    first = run(lake, table, "abc", Maker(A))
    second = run(lake, table, "abc", Maker(A))
    assert (first.new, second.new, second.reused) == (3, 0, 3)
    assert (second.snapshot, second.data_version) == (first.snapshot, first.data_version)
    assert not second.changed


def test_limit_goes_on_where_it_stopped(lake: Lake) -> None:
    table = new_table()
    some = RefreshConfig(limit=2)
    assert run(lake, table, "abcde", Maker(A), some).total == 2
    assert run(lake, table, "abcde", Maker(A), some).total == 4
    stale = run(lake, table, "abcde", Maker(B), some)
    assert (stale.total, stale.stale) == (4, 2), "rows beyond the limit stay until their turn comes"


def test_full_does_everything_again_but_resumes_its_own_run(lake: Lake) -> None:
    table = new_table()
    full = RefreshConfig(mode=Mode.FULL)
    run(lake, table, "abc", Maker(A))
    maker = Maker(A)
    report = run(lake, table, "abc", maker, full, run_id="again")
    assert (maker.asked, report.stale, report.reused) == (["a", "b", "c"], 3, 0)
    resumed = Maker(A)
    run(lake, table, "abcd", resumed, full, run_id="again")
    assert resumed.asked == ["d"]


def test_incremental_after_append_removes_what_append_kept(lake: Lake) -> None:
    table = new_table()
    append = RefreshConfig(mode=Mode.APPEND)
    run(lake, table, "ab", Maker(A))
    assert run(lake, table, "bc", Maker(B), append).removed == 0
    assert made(lake, table) == expected("ab", A) | expected("bc", B)
    report = run(lake, table, "bc", Maker(B))
    assert (report.removed, report.reused) == (2, 2) and made(lake, table) == expected("bc", B)


def test_quarantine_follows_inputs_and_recipe(lake: Lake) -> None:
    table = new_table()
    run(lake, table, "abcd", Maker(A, "ab"))
    run(lake, table, "acd", Maker(A, "a"))
    assert quarantined(lake, table) == {"a": 2}, "b is gone"
    run(lake, table, "acd", Maker(B, "c"))
    assert quarantined(lake, table) == {"c": 1}, "a was made by the new recipe"
    assert made(lake, table) == expected("ad", B), "c's row of the old recipe is gone"


def test_lost_rows_are_made_again_or_removed(lake: Lake) -> None:
    table = new_table()
    run(lake, table, "abc", Maker(A))
    maker = Maker(A, "b")
    refresh(lake, table, inputs_of("abc"), A, maker, LENIENT, run_id="run", lost=["a", "b"])
    assert maker.asked == ["a"] and made(lake, table) == expected("ac", A)


def test_inputs_as_sql_over_the_lake(lake: Lake) -> None:
    source, table = new_table(), new_table()
    run(lake, source, "abc", Maker(A))
    maker = Maker(B)
    sql = f"SELECT input_id, word FROM {source.name} WHERE input_id <> 'b' -- no b\n;"
    refresh(lake, table, sql, B, maker, run_id="run")
    assert maker.asked == ["a", "c"]


# ---- failures ----------------------------------------------------------------------------------------------


def test_a_bad_row_is_tried_up_to_the_limit_and_then_given_up(lake: Lake) -> None:
    table = new_table()
    config = RefreshConfig(max_attempts=2, max_failure_ratio=0.5)
    reports = [run(lake, table, "abcd", Maker(A, "b"), config) for _ in range(3)]
    assert [(report.failed, report.given_up) for report in reports] == [(1, 0), (1, 1), (0, 1)]
    assert quarantined(lake, table) == {"b": 2}
    [error] = lake.read(FAILURES, where="table_name = ?", parameters=[table.label])["error"].to_pylist()
    assert error == "ValueError: cannot make b"
    waiting = plan(lake, table, inputs_of("abcd"), A, config)
    assert (waiting.failed, waiting.given_up, waiting.todo.num_rows) == (1, 1, 0)
    assert run(lake, table, "abcd", Maker(A), RefreshConfig(mode=Mode.FULL), run_id="full").given_up == 0
    assert made(lake, table) == expected("abcd", A) and quarantined(lake, table) == {}


def test_failures_wait_if_they_are_not_to_be_retried(lake: Lake) -> None:
    table = new_table()
    run(lake, table, "abc", Maker(A, "b"))
    maker = Maker(A)
    run(lake, table, "abc", maker, RefreshConfig(retry_failures=False, max_failure_ratio=0.5))
    assert maker.asked == [] and quarantined(lake, table) == {"b": 1}


def test_too_many_failures_fail_the_run_after_the_good_rows(lake: Lake) -> None:
    table = new_table()
    run(lake, table, "z", Maker(A))
    with pytest.raises(RefreshFailed, match="2 of 5 rows failed") as caught:
        run(lake, table, "abcde", Maker(A, "bd"), RefreshConfig(batch_size=2))
    assert "b: ValueError: cannot make b" in str(caught.value)
    assert made(lake, table) == expected("acez", A), "the good rows are kept and nothing is cleared away"


def test_one_bad_new_row_does_not_fail_a_run(lake: Lake) -> None:
    table = new_table()
    run(lake, table, "abcdefgh", Maker(A))
    assert run(lake, table, "abcdefghx", Maker(A, "x"), RefreshConfig()).failed == 1


def test_an_outage_fails_the_run_however_large_the_table(lake: Lake) -> None:
    table = new_table()
    run(lake, table, [f"old {number}" for number in range(40)], Maker(A), RefreshConfig(batch_size=40))
    new = [f"new {number}" for number in range(4)]
    with pytest.raises(RefreshFailed, match="4 of 4"):
        words = [*new, *(f"old {number}" for number in range(40))]
        run(lake, table, words, Maker(A, new), RefreshConfig(batch_size=2))


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda batch: BatchResult(rows_of(["a"], A)), "forgot b"),
        (lambda batch: BatchResult(rows_of(["a", "b", "q"], A)), "invented q"),
        (lambda batch: BatchResult(rows_of(["a", "b"], A), [Failure("b", "x")]), "repeated b"),
        (lambda batch: BatchResult(pa.table({"word": ["a", "b"]})), "no column input_id"),
        (lambda batch: BatchResult(rows_of(["a", "b"], A).drop_columns("word")), "lack word"),
        (
            lambda batch: BatchResult(rows_of(["a", "b"], A).set_column(0, "thing_id", pa.array(["k", "k"]))),
            "thing_id occurs more than once: k",
        ),
    ],
)
def test_a_function_that_does_not_answer_row_by_row_is_an_error(
    lake: Lake, answer: BatchFunction, complaint: str
) -> None:
    table = new_table()
    with pytest.raises(LakeError, match=complaint):
        refresh(lake, table, inputs_of("ab"), A, answer, LENIENT, run_id="run")
    assert made(lake, table) == {} and quarantined(lake, table) == {}


def test_two_inputs_with_one_key_are_an_error_and_not_a_quarrel_without_end(lake: Lake) -> None:
    def same_key(batch: pa.Table) -> BatchResult:
        rows = rows_of(batch["input_id"].to_pylist(), A)
        return BatchResult(rows.set_column(0, "thing_id", pa.array(["k"] * rows.num_rows)))

    with pytest.raises(RefreshError, match="inputs a and b both gave the thing_id k"):
        refresh(lake, new_table(), inputs_of("ab"), A, same_key, RefreshConfig(batch_size=1), run_id="run")


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        (pa.table({"input_id": ["a", "a"]}), "more than once: a"),
        (pa.table({"input_id": ["a", None]}), "1 rows without input_id"),
        (pa.table({"word": ["a"]}), "no column input_id"),
        ("SELECT 1 AS one", "input_id"),
        ("SELECT nonsense FROM nowhere", "nowhere"),
    ],
)
def test_bad_inputs_are_named(lake: Lake, inputs: pa.Table | str, complaint: str) -> None:
    with pytest.raises(RefreshError, match=complaint):
        plan(lake, new_table(), inputs, A, LENIENT)


def test_bad_settings_and_tables_are_named(lake: Lake) -> None:
    for wrong in ({"limit": -1}, {"batch_size": 0}, {"max_failure_ratio": 2}, {"mode": "sideways"}):
        with pytest.raises(ValueError, match=r"limit|batch_size|max_failure_ratio|sideways"):
            RefreshConfig(**wrong)
    with pytest.raises(RefreshError, match="no lineage"):
        plan(lake, RAW_PROMPTS, inputs_of("a"), A, LENIENT)


def test_a_function_that_stops_keeps_what_is_done_and_blames_no_row(lake: Lake) -> None:
    table, maker = new_table(), Maker(A, "b", raises=False)

    def stopping(batch: pa.Table) -> BatchResult:
        """The budget lasts for the first two rows of the second batch."""
        if "d" not in batch["input_id"].to_pylist():
            return maker(batch)
        result = maker(batch.slice(0, 2))
        return BatchResult(result.rows, result.failures, stopped="the budget is spent.")

    words = list("abcdef")
    with pytest.raises(StopRefresh, match=r"stopped with 5 of 6 rows done: the budget is spent\. What is done is kept"):
        refresh(lake, table, inputs_of(words), A, stopping, LENIENT, run_id="one")
    assert made(lake, table) == expected("acde", A)
    assert quarantined(lake, table) == {"b": 1}
    report = refresh(lake, table, inputs_of(words), A, Maker(A), LENIENT, run_id="two")
    assert (report.new, report.reused) == (2, 4)
    assert made(lake, table) == expected(words, A)


def test_an_outage_that_no_row_is_to_blame_for_quarantines_nothing(lake: Lake) -> None:
    table = new_table()

    def unreachable(batch: pa.Table) -> BatchResult:
        raise StopRefresh("nobody answers at http://127.0.0.1:1")

    with pytest.raises(StopRefresh, match="nobody answers"):
        refresh(lake, table, inputs_of(list("abc")), A, unreachable, LENIENT, run_id="one")
    assert not made(lake, table)
    assert not quarantined(lake, table)


def test_interruption_passes_through_and_leaves_no_failure(lake: Lake) -> None:
    table = new_table()

    def interrupted(batch: pa.Table) -> BatchResult:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refresh(lake, table, inputs_of("ab"), A, interrupted, LENIENT, run_id="run")
    assert quarantined(lake, table) == {}


def test_progress_reaches_the_end(lake: Lake) -> None:
    seen: list[Progress] = []
    refresh(lake, new_table(), inputs_of("abcde"), A, Maker(A, "b"), LENIENT, run_id="r", progress=seen.append)
    assert [(step.done, step.total, step.failed) for step in seen] == [(3, 5, 1), (5, 5, 1)]
    assert seen[-1].remaining_seconds == 0


def test_sql_in_the_words_stays_words(lake: Lake) -> None:
    table = new_table()
    words = ["'; DROP TABLE things; --", '"x"', "$1 ?", "<b>é🎈</b>"]
    run(lake, table, words, Maker(A, words[:1]))
    assert made(lake, table) == expected(words[1:], A) and list(quarantined(lake, table)) == words[:1]


def test_recipes_do_not_depend_on_the_order_of_their_parts() -> None:
    assert Recipe({"a": 1, "b": {"c": 2, "d": None}}).id == Recipe({"b": {"d": None, "c": 2}, "a": 1}).id
    assert Recipe({"a": 1}).id != Recipe({"a": "1"}).id
    assert Recipe({"a": 1, "b": None}).changed_parts([{"a": 1}, {"a": 2, "b": None}]) == ("a", "b")
    with pytest.raises(ValueError, match="JSON"):
        _ = Recipe({"a": float("nan")}).id


# ---- a real process, really killed -------------------------------------------------------------------------

REFRESHER = """
import sys, time
from pathlib import Path
from storage.lake import Lake
from storage.recipe import Recipe
from storage.refresh import RefreshConfig, refresh
from tests.storage.things import THINGS, Maker, inputs_of

class Slow(Maker):
    def __call__(self, batch):
        time.sleep(0.05)
        return super().__call__(batch)

recipe = Recipe({"model": "a", "settings": {"temperature": 0.5}})
print("ready", flush=True)
refresh(Lake(Path(sys.argv[1])), THINGS, inputs_of([f"w{n:03}" for n in range(60)]), recipe, Slow(recipe),
        RefreshConfig(batch_size=2), run_id="killed", progress=lambda step: print(step.done, flush=True))
"""


def test_kill_9_in_the_middle_loses_and_repeats_nothing(tmp_path: Path) -> None:
    from tests.storage.things import THINGS

    words = [f"w{number:03}" for number in range(60)]
    process = subprocess.Popen(
        [sys.executable, "-c", REFRESHER, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    acknowledged = 0
    for line in process.stdout:
        acknowledged = 0 if line.startswith("ready") else int(line)
        if acknowledged >= 10:
            break
    time.sleep(0.06)  # somewhere in the middle of the next batch
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with Lake(tmp_path, lock_timeout=20) as lake:
        survived = {word for word, _ in made(lake, THINGS)}
        assert acknowledged <= len(survived) < 60
        maker = Maker(A)
        report = run(lake, THINGS, words, maker, run_id="resumed")
        assert set(maker.asked) == set(words) - survived
        assert made(lake, THINGS) == expected(words, A)
        assert (report.new, report.reused) == (60 - len(survived), len(survived))
