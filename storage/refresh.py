"""Bringing a table up to date: do what is missing, batch by batch, and leave it as if made from scratch.

The heart of the platform, and pure storage: an asset gives the input rows, the recipe and a function from a
batch of input rows to output rows. Here: computing, committing, quarantine, clearing away, the report. What
is to be done is decided in `storage.plan`; tables that are a function of a whole set are in
`storage.rebuild`.
"""

# ruff: noqa: S608 (SQL names come from Table, which takes plain identifiers only; values are parameters)

from __future__ import annotations

import datetime
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from storage.content import data_version, noted_version
from storage.ids import content_id
from storage.lake import Lake, Transaction, checked_rows
from storage.other_runs import OtherRuns
from storage.plan import Mode, Plan, RefreshConfig, RefreshError, plan
from storage.rebuild import Report, rebuild
from storage.recipe import Recipe, remember, stamped
from storage.scope import note_refresh
from storage.tables import FAILURES, RECIPES, THROUGHPUT, Table, quoted

__all__ = [
    "BatchFunction",
    "BatchResult",
    "Failure",
    "Mapper",
    "Mode",
    "Plan",
    "Progress",
    "Recipe",
    "RefreshConfig",
    "RefreshError",
    "RefreshFailed",
    "Report",
    "StopRefresh",
    "answered",
    "data_version",
    "plan",
    "rebuild",
    "refresh",
]

ERROR_LENGTH = 2000
SMALL_COMMITS = 50
"""After so many batch commits the table's many small files are merged."""


@dataclass(frozen=True)
class Failure:
    """One input row that gives no result, and why."""

    input_id: str
    error: str


@dataclass(frozen=True)
class BatchResult:
    """What the function made of a batch: one output row (with input_id) or one Failure per input row.

    Where it had to stop in the middle, `stopped` says why, and the rows that it did not come to are missing.
    """

    rows: pa.Table
    failures: Sequence[Failure] = ()
    stopped: str | None = None


BatchFunction: TypeAlias = Callable[[pa.Table], BatchResult]


class Mapper(Protocol):
    """Applies a function to batches, here or elsewhere; yields each batch with its result, in any order."""

    def __call__(
        self, function: BatchFunction, batches: Iterable[pa.Table]
    ) -> Iterable[tuple[pa.Table, BatchResult]]: ...


@dataclass(frozen=True)
class Progress:
    """How far a refresh is: rows done (failed ones included) of total."""

    done: int
    total: int
    failed: int
    seconds: float

    @property
    def rows_per_second(self) -> float:
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def remaining_seconds(self) -> float | None:
        return (self.total - self.done) / self.rows_per_second if self.done else None


class RefreshFailed(Exception):
    """Too many rows failed. The good rows are committed; the failed ones are in `failures`."""

    def __init__(self, table: Table, failures: Sequence[Failure], attempted: int, allowed: float) -> None:
        self.failures = tuple(failures)
        self.attempted = attempted
        shown = "\n".join(f"  {failure.input_id}: {_first_line(failure.error)}" for failure in failures[:10])
        more = f"\n  and {len(failures) - 10} more (table failures)" if len(failures) > 10 else ""
        super().__init__(
            f"table {table.label}: {len(failures)} of {attempted} rows failed, more than the allowed share "
            f"of {allowed:g}; the good rows are kept, the failed ones are tried again by the next refresh:\n"
            f"{shown}{more}"
        )


class StopRefresh(Exception):
    """Raised by a function: it cannot go on, and no row is to blame (a server is gone, a budget is spent). Nothing
    is quarantined; what was committed stays, and the next refresh does the rest."""


@dataclass(frozen=True)
class Guarded:
    """A batch function that quarantines: when a batch raises, its rows are tried one by one, so that only the
    bad ones fail. Made of plain data, so that a mapper may send it to other processes."""

    function: BatchFunction

    def __call__(self, batch: pa.Table) -> BatchResult:
        try:
            return self.function(batch)
        except StopRefresh:
            raise
        except Exception as error:
            if batch.num_rows == 1:
                return BatchResult(batch.slice(0, 0), [Failure(batch["input_id"][0].as_py(), _described(error))])
        results = [self(batch.slice(index, 1)) for index in range(batch.num_rows)]
        stopped = next((result.stopped for result in results if result.stopped), None)
        rows = [result.rows for result in results if result.rows.num_rows]
        return BatchResult(
            pa.concat_tables(rows, promote_options="permissive") if rows else batch.slice(0, 0),
            [failure for result in results for failure in result.failures],
            stopped,
        )


def map_here(function: BatchFunction, batches: Iterable[pa.Table]) -> Iterator[tuple[pa.Table, BatchResult]]:
    """The plain mapper: one batch after the other, in this process."""
    for batch in batches:
        yield batch, function(batch)


def refresh(
    lake: Lake,
    table: Table,
    inputs: pa.Table | str,
    recipe: Recipe,
    function: BatchFunction,
    config: RefreshConfig | None = None,
    *,
    run_id: str,
    mapper: Mapper = map_here,
    progress: Callable[[Progress], None] = lambda _: None,
    announce: Callable[[Plan], None] = lambda _: None,
    lost: Collection[str] = (),
    by_query: bool = False,
) -> Report:
    """Bring the table up to date with its inputs and recipe.

    `inputs`, `lost`, `by_query`: as for `plan`. `function` gets a batch of input rows and returns a BatchResult whose
    rows have the table's own columns and input_id; the lineage columns are added here. Each batch is
    committed on its own, a stale row being replaced in the commit that writes its successor, so that a killed
    run resumes from its last batch and readers never miss a row. Rows of gone inputs are removed
    at the end, and so are rows of other recipes whose input is done or failed (APPEND keeps rows of other
    recipes, unless a new row has the same key).

    A row that fails goes to `failures` and is tried again by the next refreshes, up to `max_attempts`. Raises
    RefreshFailed, after committing the good rows and clearing nothing away, if more than `max_failure_ratio`
    of the table's rows are missing for failures, or of the rows tried for the first time (if they are a batch
    or more: one bad new row is no reason to stop everything downstream). Raises RefreshError, which is never
    quarantined, for a function that forgets or invents rows, or gives two rows the same key. `announce` is given the
    plan before anything is computed.

    Several runs may refresh the same table at once. They share the work as soon as they notice each other: a row that
    another run has made meanwhile with the same recipe is left to it (and counts as reused), and the runs go on in
    different places, so that little is done twice. FULL, which wants everything anew, and lost rows are not shared.
    """
    config = config or RefreshConfig()
    lake.create(table, RECIPES, FAILURES, THROUGHPUT)
    others = OtherRuns(lake, table, recipe)
    planned = plan(lake, table, inputs, recipe, config, lost=lost, run_id=run_id, by_query=by_query)
    announce(planned)
    work = _Work(lake, table, inputs, recipe, config, run_id, planned, others, lost)
    work.compute(function, mapper, progress)
    work.raise_if_too_many_failed()
    if others.look(lake):
        # What is superfluous has changed, too.
        work.planned_end = plan(lake, table, inputs, recipe, config, run_id=run_id)
    removed = work.clear_away()
    work.note_if_complete()
    if work.commits >= SMALL_COMMITS:
        lake.compact(table)
    return work.report(removed)


class _Work:
    """One refresh while it runs: what it needs everywhere, and what it counts."""

    def __init__(
        self,
        lake: Lake,
        table: Table,
        inputs: pa.Table | str,
        recipe: Recipe,
        config: RefreshConfig,
        run_id: str,
        planned: Plan,
        others: OtherRuns,
        lost: Collection[str],
    ) -> None:
        self.lake = lake
        self.table = table
        self.inputs = inputs
        self.recipe = recipe
        self.config = config
        self.run_id = run_id
        self.planned = planned
        self.planned_end = planned
        """By which is cleared away: planned anew if other runs have been at work."""
        self.others = others
        self.commits = 0
        self.left_to_others = 0
        self.new = 0
        self.stale = 0
        self.failures: list[Failure] = []
        self.seconds = 0.0
        self._started = time.monotonic()
        ids = planned.todo["input_id"].to_pylist()
        self._replaces = set(planned.replacing.to_pylist())
        self._retries = set(planned.retried.to_pylist())
        self._outstanding = set(ids)
        self._not_shared = set(ids) if config.mode is Mode.FULL else set(lost)
        self._computed = 0
        self._recorded = False
        self._dice = random.Random(others.mark)  # noqa: S311 (no secret: where to go on)

    # ---- computing and committing ------------------------------------------------------------------------

    def compute(self, function: BatchFunction, mapper: Mapper, progress: Callable[[Progress], None]) -> None:
        total = self.planned.todo.num_rows
        if total == 0:
            return
        self._started = time.monotonic()
        for batch, result in mapper(Guarded(function), self._batches()):
            if self._outstanding.isdisjoint(batch["input_id"].to_pylist()):
                continue  # a mapper may deliver a batch twice, say after a worker's death; once is enough
            rows = self._checked(batch, result)
            self._commit(answered(batch, result) if result.stopped else batch, rows, result.failures)
            self.seconds = time.monotonic() - self._started
            progress(Progress(self.done, total, len(self.failures), self.seconds))
            if result.stopped:
                raise StopRefresh(
                    f"table {self.table.label}: stopped with {self.done} of {total} rows done: {result.stopped} "
                    "What is done is kept, and the next refresh does the rest."
                )
        if self._outstanding:
            raise RefreshError(
                f"table {self.table.label}: the mapper ended without a result for {_some(sorted(self._outstanding))}"
            )
        if self._computed and not self._recorded:  # the last batches were left to others
            with self.lake.write(self._message(text="throughput")) as transaction:
                self._record_throughput(transaction)

    @property
    def done(self) -> int:
        return int(self.planned.todo.num_rows) - len(self._outstanding)

    def _batches(self) -> Iterator[pa.Table]:
        """One after the other; beside other runs at a random place, without what they have done by then."""
        todo, size = self.planned.todo, self.config.batch_size
        starts = list(range(0, todo.num_rows, size))[::-1]
        while starts:
            batch = todo.slice(starts.pop(self._dice.randrange(len(starts)) if self.others.met else -1), size)
            if self.others.met:
                ids = set(batch["input_id"].to_pylist())
                self._leave_to_others(self.others.done(self.lake, ids) - self._not_shared)
                batch = _without(batch, ids - self._outstanding)
            if batch.num_rows:
                yield batch

    def _leave_to_others(self, ids: set[str]) -> None:
        left = ids & self._outstanding
        self.left_to_others += len(left)
        self._outstanding -= left

    def _checked(self, batch: pa.Table, result: BatchResult) -> pa.Table:
        """The rows ready to be written, or RefreshError naming the input ids that are wrong."""
        asked = set(batch["input_id"].to_pylist())
        rows = result.rows
        if rows.num_rows and "input_id" not in rows.column_names:
            raise RefreshError(f"table {self.table.label}: the function's rows have no column input_id")
        made = rows["input_id"].to_pylist() if rows.num_rows else []
        answered = [*made, *(failure.input_id for failure in result.failures)]
        invented = sorted({str(id_) for id_ in answered} - asked)
        forgotten = [] if result.stopped else sorted(asked - set(answered))
        repeated = sorted(id_ for id_, times in Counter(answered).items() if times > 1 and id_ in asked)
        for what, ids in (("invented", invented), ("forgot", forgotten), ("repeated", repeated)):
            if ids:
                raise RefreshError(
                    f"table {self.table.label}: each input row must give one row or one failure, but the "
                    f"function {what} {_some(ids)}"
                )
        if not made:
            return self.table.arrow_schema.empty_table()
        return checked_rows(self.table, stamped(rows, self.recipe.id, self.run_id))

    def _commit(self, batch: pa.Table, rows: pa.Table, failures: Sequence[Failure]) -> None:
        ids = set(batch["input_id"].to_pylist())
        self._computed += batch.num_rows
        committed = rows, failures, set[str]()

        def commit(transaction: Transaction) -> None:
            nonlocal committed
            committed = self._commit_in(transaction, batch, rows, failures)

        self.lake.commit(self._message(recipe=self.recipe.id, rows=rows.num_rows), commit)
        rows, failures, taken = committed
        self._leave_to_others(taken)
        self.commits += 1
        self.failures.extend(failures)
        written = self._outstanding & set(rows["input_id"].to_pylist())
        self.stale += len(written & self._replaces)
        self.new += len(written - self._replaces)
        self._outstanding -= ids

    def _commit_in(
        self, transaction: Transaction, batch: pa.Table, rows: pa.Table, failures: Sequence[Failure]
    ) -> tuple[pa.Table, Sequence[Failure], set[str]]:
        """What was written of rows and failures, and the input ids that are left to other runs."""
        ids = set(batch["input_id"].to_pylist())
        # Whoever commits a row first has made it: readers may have gone on from it already.
        taken = self.others.done(transaction, ids) - self._not_shared if self.others.look(transaction) else set()
        failures = [failure for failure in failures if failure.input_id not in taken]
        rows = _without(rows, taken)
        if self.commits == 0:
            remember(transaction, self.recipe)
        if rows.num_rows and self._are_there(transaction, rows):
            outdated = self._outdated(transaction, rows)
            rows, taken = _without(rows, outdated), taken | outdated
            self._remove_predecessors(transaction, rows)
        transaction.execute(f"INSERT INTO {self.table.qualified} BY NAME SELECT * FROM incoming", incoming=rows)
        self._update_quarantine(transaction, batch, failures)
        if self._outstanding and self._outstanding <= ids:
            self._record_throughput(transaction)
        return rows, failures, taken

    def _message(self, **more: str | int) -> dict[str, str | int]:
        return {"run_id": self.run_id, "asset": self.table.label, "refresh": self.others.mark, **more}

    def _are_there(self, transaction: Transaction, rows: pa.Table) -> bool:
        """Whether the table has a row with an input or a key of these: one look, which is all that new rows need."""
        name, key = self.table.qualified, quoted(self.table.key)
        found = transaction.query(
            f"SELECT 1 AS one FROM {name} WHERE input_id IN (SELECT input_id FROM incoming) "
            f"OR {key} IN (SELECT {key} FROM incoming) LIMIT 1",
            incoming=rows,
        )
        return bool(found.num_rows)

    def _outdated(self, transaction: Transaction, rows: pa.Table) -> set[str]:
        """Input ids of rows whose key another run has given to a later input meanwhile. RefreshError if it is our own
        inputs that share a key."""
        name, key = self.table.qualified, quoted(self.table.key)
        clashes = transaction.query(
            f"SELECT there.input_id AS one, incoming.input_id AS other, incoming.{key} AS key "
            f"FROM {name} AS there JOIN incoming ON there.{key} = incoming.{key} "
            "WHERE there.recipe = incoming.recipe AND there.input_id <> incoming.input_id "
            "AND there.input_id NOT IN (SELECT input_id FROM doomed)",
            incoming=rows,
            doomed=self.planned.doomed,
        ).to_pylist()
        if not clashes:
            return set()
        theirs = {clash["one"] for clash in clashes} - self._own(transaction, [clash["one"] for clash in clashes])
        for clash in clashes:
            if clash["one"] not in theirs:
                raise RefreshError(
                    f"table {self.table.label}: the inputs {clash['one']} and {clash['other']} both gave "
                    f"the {self.table.key} {clash['key']}; make the key from the input_id"
                )
        return {clash["other"] for clash in clashes} - self._still_wanted(transaction)

    def _own(self, transaction: Transaction, input_ids: Sequence[str]) -> set[str]:
        """Those of the inputs whose row was there when we began, or was made by us."""
        made = transaction.query(
            f"SELECT input_id FROM {self.table.qualified} WHERE run_id = ? AND input_id IN (SELECT unnest(?))",
            [self.run_id, list(input_ids)],
        )
        return set(made["input_id"].to_pylist()) | self.others.there_before(transaction, input_ids)

    def _still_wanted(self, transaction: Transaction) -> set[str]:
        """Input ids as the inputs are now, which may have changed since the plan was made."""
        if isinstance(self.inputs, pa.Table):
            return set(self.inputs["input_id"].to_pylist())
        source = self.inputs.strip().rstrip(";")
        return set(transaction.query(f"SELECT input_id FROM ({source})")["input_id"].to_pylist())

    def _remove_predecessors(self, transaction: Transaction, rows: pa.Table) -> None:
        """Rows of the same inputs and of the same keys."""
        name, key = self.table.qualified, quoted(self.table.key)
        same_recipe = " AND recipe = ?" if self.config.mode is Mode.APPEND else ""
        transaction.execute(
            f"DELETE FROM {name} WHERE (input_id IN (SELECT input_id FROM incoming){same_recipe}) "
            f"OR {key} IN (SELECT {key} FROM incoming)",
            [self.recipe.id] if same_recipe else [],
            incoming=rows,
        )

    def _update_quarantine(self, transaction: Transaction, batch: pa.Table, failures: Sequence[Failure]) -> None:
        """Failed rows of the batch go in, with one attempt more; the others come out."""
        if not failures and not self.planned.quarantined and not self.others.met:
            return
        ids = {id_: self._failure_id(id_) for id_ in batch["input_id"].to_pylist()}
        known = transaction.query(
            f"SELECT failure_id, attempts FROM {FAILURES.qualified} WHERE failure_id IN (SELECT failure_id FROM batch)",
            batch=pa.table({"failure_id": list(ids.values())}),
        ).to_pylist()
        attempts = {row["failure_id"]: row["attempts"] for row in known}
        failed = {failure.input_id for failure in failures}
        transaction.delete(FAILURES, [failure_id for id_, failure_id in ids.items() if id_ not in failed])
        now = datetime.datetime.now(datetime.UTC)
        entries = [
            {
                "failure_id": ids[failure.input_id],
                "table_name": self.table.label,
                "input_id": failure.input_id,
                "recipe": self.recipe.id,
                "error": failure.error[:ERROR_LENGTH],
                "attempts": attempts.get(ids[failure.input_id], 0) + 1,
                "last_at": now,
            }
            for failure in failures
        ]
        if entries:
            transaction.upsert(FAILURES, pa.Table.from_pylist(entries, schema=FAILURES.arrow_schema))

    def _failure_id(self, input_id: str) -> str:
        return content_id(self.table.label, input_id, self.recipe.id)

    def _record_throughput(self, transaction: Transaction) -> None:
        now = datetime.datetime.now(datetime.UTC)
        entry = {
            "throughput_id": content_id(self.table.label, self.run_id, now.isoformat()),
            "table_name": self.table.label,
            "recipe": self.recipe.id,
            "rows": self._computed,
            "seconds": time.monotonic() - self._started,
            "at": now,
        }
        transaction.insert(THROUGHPUT, pa.Table.from_pylist([entry], schema=THROUGHPUT.arrow_schema))
        self._recorded = True

    # ---- the end -----------------------------------------------------------------------------------------

    def raise_if_too_many_failed(self) -> None:
        allowed = self.config.max_failure_ratio
        missing = self._missing
        of_table = missing / max(1, missing + self.reused + self.new + self.stale)
        first_tries = self.planned.todo.num_rows - len(self._retries)
        first_failures = [failure for failure in self.failures if failure.input_id not in self._retries]
        of_tried = len(first_failures) / first_tries if first_tries >= self.config.batch_size else 0.0
        if of_tried > allowed:
            raise RefreshFailed(self.table, first_failures, first_tries, allowed)
        if of_table > allowed:
            known = self.failures or self._known_failures()
            raise RefreshFailed(self.table, known, self.planned.inputs, allowed)

    @property
    def reused(self) -> int:
        """Rows that were up to date, or that another run has made meanwhile."""
        return self.planned.reused + self.left_to_others

    @property
    def _missing(self) -> int:
        """Inputs that are in quarantine for this recipe now."""
        failed_now = {failure.input_id for failure in self.failures}
        recovered = len(self._retries - failed_now - self._outstanding)
        return self.planned.failed - recovered + len(failed_now - self._retries)

    def _known_failures(self) -> list[Failure]:
        rows = self.lake.query(
            f"SELECT input_id, error FROM {FAILURES.qualified} WHERE table_name = ? AND recipe = ? ORDER BY input_id",
            [self.table.label, self.recipe.id],
        )
        return [Failure(row["input_id"], row["error"]) for row in rows.to_pylist()]

    def clear_away(self) -> int:
        """Remove, in one transaction, what a table made from scratch would not have. How many rows."""
        doomed = self.planned_end.doomed
        if doomed.num_rows == 0 and not self.failures and self.planned_end.quarantined == 0:
            return 0
        name, append = self.table.qualified, self.config.mode is Mode.APPEND
        with self.lake.write(self._message(text="clear away")) as transaction:
            if doomed.num_rows:
                doomed = self._still_doomed(transaction, doomed)
            removed = transaction.execute(
                f"DELETE FROM {name} WHERE (input_id, recipe) IN (SELECT (input_id, recipe) FROM doomed)",
                doomed=doomed,
            )
            # An input in quarantine has no row: one that it had from before is out of date or was lost.
            removed += transaction.execute(
                f"DELETE FROM {name} WHERE input_id IN (SELECT input_id FROM {FAILURES.qualified} "
                "WHERE table_name = ? AND recipe = ?)" + (" AND recipe = ?" if append else ""),
                [self.table.label, self.recipe.id, *([self.recipe.id] if append else [])],
            )
            # Quarantine is kept for inputs that are still there and, outside APPEND, for this recipe only.
            transaction.execute(
                f"DELETE FROM {FAILURES.qualified} WHERE table_name = ? AND "
                "((recipe = ? AND input_id IN (SELECT input_id FROM released))"
                + (")" if append else " OR recipe <> ?)"),
                [self.table.label, self.recipe.id, *([] if append else [self.recipe.id])],
                released=self.planned_end.released,
            )
        return removed

    def _still_doomed(self, transaction: Transaction, doomed: pa.Table) -> pa.Table:
        """Without rows whose input has come back since the plan was made, and rows of other recipes that have become
        the only ones of their input: another run made or reused them."""
        wanted = self.inputs["input_id"] if isinstance(self.inputs, pa.Table) else None
        source = "given" if wanted is not None else f"({str(self.inputs).strip().rstrip(';')})"
        relations = {} if wanted is None else {"given": pa.table({"input_id": wanted})}
        return transaction.query(
            f"WITH wanted AS (SELECT input_id FROM {source}), "
            f"made AS (SELECT input_id FROM {self.table.qualified} WHERE recipe = ?) "
            "SELECT input_id, recipe FROM doomed WHERE input_id NOT IN (SELECT input_id FROM wanted) "
            "OR (recipe <> ? AND input_id IN (SELECT input_id FROM made))",
            [self.recipe.id, self.recipe.id],
            doomed=doomed,
            **relations,
        )

    def note_if_complete(self) -> None:
        """So that the next refresh needs to look at what changes from now on only."""
        planned = self.planned
        if self.others.met or self.failures or self.config.mode is Mode.APPEND or not planned.does_all:
            return
        if planned.asked and not planned.untouched:
            note_refresh(self.lake, self.table, self.recipe, planned.asked, saw=planned.saw, mark=self.others.mark)

    def report(self, removed: int) -> Report:
        return Report(
            total=self.lake.count(self.table),
            new=self.new,
            stale=self.stale,
            reused=self.reused,
            removed=removed,
            failed=len(self.failures),
            given_up=self._given_up(),
            seconds=self.seconds,
            rows_per_second=self._computed / self.seconds if self.seconds > 0 else None,
            data_version=noted_version(self.lake, self.table),
            snapshot=self.lake.snapshot(),
        )

    def _given_up(self) -> int:
        if not self.failures:
            return self.planned.given_up
        rows = self.lake.query(
            f"SELECT count(*) AS n FROM {FAILURES.qualified} WHERE table_name = ? AND recipe = ? AND attempts >= ?",
            [self.table.label, self.recipe.id, self.config.max_attempts],
        )
        return int(rows["n"][0].as_py())


def answered(batch: pa.Table, result: BatchResult) -> pa.Table:
    """The input rows of a batch that have a row or a failure: of one that was stopped, not all."""
    made = result.rows["input_id"].to_pylist() if result.rows.num_rows else []
    answered = pa.array([*made, *(failure.input_id for failure in result.failures)], pa.string())
    return batch.filter(pc.is_in(batch["input_id"], value_set=answered))


def _without(rows: pa.Table, input_ids: set[str]) -> pa.Table:
    if not input_ids or rows.num_rows == 0:
        return rows
    return rows.filter(pc.invert(pc.is_in(rows["input_id"], value_set=pa.array(sorted(input_ids), pa.string()))))


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _first_line(text: str) -> str:
    return (text.splitlines() or [""])[0][:200]


def _some(ids: Sequence[str]) -> str:
    shown = ", ".join(ids[:10])
    return shown if len(ids) <= 10 else f"{shown} and {len(ids) - 10} more"
