"""What a step of the method is, apart from Dagster: its table, its inputs, its recipe and its work.

Belongs here: the two kinds of steps and how they are carried out on a platform. Does not belong here: any
particular step (prompts.py, sft.py, target.py, evaluation.py) or Dagster (table_assets.py).
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import pyarrow as pa

from resources.backend_settings import Section
from resources.compute_settings import Stage
from resources.outcome import Failed, Outcome, Skipped
from resources.settings import Profile
from storage.ids import seed_of
from storage.plan import Plan
from storage.recipe import JSON
from storage.refresh import (
    BatchResult,
    Failure,
    Mapper,
    Progress,
    Recipe,
    RefreshConfig,
    Report,
    plan,
    rebuild,
    refresh,
)
from storage.scope import Scope
from storage.tables import LINEAGE_NAMES, Table
from vpo_assets.platform import Platform, quiet_libraries

Row: TypeAlias = dict[str, Any]
"""One row of a table as a dict from column to value."""

T = TypeVar("T")

Made: TypeAlias = Outcome[Row]
"""What a step made of one input row: a row, or why there is none."""


def no_lost_rows(platform: Platform) -> Collection[str]:
    """Rows whose table is all there is to them cannot be lost."""
    del platform
    return ()


def nothing_else(platform: Platform) -> Iterable[str]:
    """Steps that nothing but their upstreams' recipes can make wrong."""
    del platform
    return ()


@dataclass(frozen=True, kw_only=True)
class Step:
    """What both kinds of steps have.

    `recipe` is everything besides the input that decides the result. `reads` are the steps whose rows it joins, and
    `faults` says, one line each, what else of its inputs was made by something that the profile does not name: both are
    looked at before it works (provenance.py).
    """

    table: Table
    recipe: Callable[[Platform], Mapping[str, JSON]]
    code_version: str = "1"
    reads: tuple["RowStep", ...] = ()
    faults: Callable[[Platform], Iterable[str]] = nothing_else

    @property
    def asset(self) -> str:
        """`drafts`, `shapes/videos`."""
        return self.table.label.replace(".", "/")

    def full_recipe(self, platform: Platform) -> Recipe:
        """The recipe with the step's code version."""
        return Recipe({"code": self.code_version, **self.recipe(platform)})


@dataclass(frozen=True, kw_only=True)
class RowStep(Step):
    """A step that makes its rows one by one: each input row gives one output row, now or never again.

    `inputs` is a SELECT over the lake with a column input_id; `work` maps input rows to output rows, in order, without
    lineage columns, or says why a row has none. `by_query`: the inputs of a query depend on that query's rows alone, as
    they do where no limit picks some queries out of all. `stage` says what kind of work it is and `backends` what it
    needs: both decide where it is done. `work` may be done in another process, on another machine: it reads the stores
    of videos and checkpoints and adds videos, and leaves the lake alone.
    """

    inputs: Callable[[Platform], str | pa.Table]
    work: Callable[[Platform, Sequence[Row]], Sequence[Made]]
    stage: Stage
    backends: Callable[[Profile], Sequence[Section]]
    batch_size: Callable[[Platform], int]
    by_query: Callable[[Platform], bool] = lambda _: True
    lost: Callable[[Platform], Collection[str]] = no_lost_rows

    def present(self, platform: Platform) -> str:
        """SQL for one row an input: that of the present recipe, else the one made last.

        Where rows of earlier recipes were kept (append), steps that choose among rows choose among these.
        """
        name, recipe = self.table.qualified, self.full_recipe(platform).id
        assert recipe.isalnum()
        return (
            f"(SELECT * FROM {name} WHERE recipe = '{recipe}' UNION ALL SELECT * FROM ("
            f"FROM {name} ANTI JOIN (SELECT input_id FROM {name} WHERE recipe = '{recipe}') USING (input_id) "
            f"WHERE recipe <> '{recipe}') "
            "QUALIFY row_number() OVER (PARTITION BY input_id ORDER BY made_at DESC, recipe) = 1)"
        )

    def mapper(self, platform: Platform) -> Mapper:
        """Where the profile has this work done."""
        return platform.mapper(self.stage, self.backends(platform.profile))

    def plan(self, platform: Platform, config: RefreshConfig) -> Plan:
        """What a refresh would do now."""
        return plan(
            platform.lake,
            self.table,
            self.inputs(platform),
            self.full_recipe(platform),
            config,
            lost=self.lost(platform),
            by_query=self.by_query(platform),
        )

    def refresh(
        self,
        platform: Platform,
        config: RefreshConfig,
        run_id: str,
        progress: Callable[[Progress], None],
        *,
        announce: Callable[[Plan], None] = lambda _: None,
        mapper: Mapper | None = None,
    ) -> Report:
        """Bring the table up to date; models are freed at the end. `announce` is told the plan before any work;
        `mapper` takes the place of the platform's."""
        columns = pa.schema([pa.field(c.name, c.type) for c in self.table.columns] + [("input_id", pa.string())])
        try:
            return refresh(
                platform.lake,
                self.table,
                self.inputs(platform),
                self.full_recipe(platform),
                StepWork(platform, self.work, columns),
                config,
                run_id=run_id,
                mapper=mapper or self.mapper(platform),
                progress=progress,
                announce=announce,
                lost=self.lost(platform),
                by_query=self.by_query(platform),
            )
        finally:
            platform.release()


@dataclass(frozen=True)
class StepWork:
    """The work of a row step as a function of a batch. Where it is sent to another process, the platform goes as its
    profile, and the models load there."""

    platform: Platform
    work: Callable[[Platform, Sequence[Row]], Sequence[Made]]
    columns: pa.Schema

    def __call__(self, batch: pa.Table) -> BatchResult:
        quiet_libraries()
        inputs = batch.to_pylist()
        outcomes = list(zip(inputs, self.work(self.platform, inputs), strict=True))
        rows = [{**made, "input_id": row["input_id"]} for row, made in outcomes if isinstance(made, dict)]
        failures = [Failure(row["input_id"], made.reason) for row, made in outcomes if isinstance(made, Failed)]
        stopped = next((made.reason for _, made in outcomes if isinstance(made, Skipped)), None)
        return BatchResult(pa.Table.from_pylist(rows, schema=self.columns), failures, stopped)


@dataclass(frozen=True, kw_only=True)
class SetStep(Step):
    """A step whose rows are a function of a whole set: cheap to compute, and only what changed is written.

    `work` returns rows with the table's own columns, and figures for people to look at. Where `sources` names every
    table that it reads, it is called only if one of them has changed, or the recipe; and where `by_query`, for the
    queries that have changed: then the rows of a query depend on that query's rows alone, and figures, which are about
    all, are left to `figures`.
    """

    work: Callable[[Platform, Scope], tuple[pa.Table, dict[str, Any]]]
    sources: tuple[Table, ...] = ()
    by_query: bool = False
    figures: Callable[[Platform], dict[str, Any]] | None = None

    def rebuild(self, platform: Platform, run_id: str) -> tuple[Report, dict[str, Any] | None]:
        """Compute the rows and write what differs. No figures: nothing has changed, and they are what they were."""
        figures: dict[str, Any] | None = None

        def rows(scope: Scope) -> pa.Table:
            nonlocal figures
            made, figures = self.work(platform, scope)
            return made

        report = rebuild(
            platform.lake,
            self.table,
            rows,
            self.full_recipe(platform),
            run_id=run_id,
            reads=self.sources,
            by_query=self.by_query,
        )
        return report, figures if figures is None or self.figures is None else figures | self.figures(platform)


def joined(rows: Sequence[Row], outcomes: Sequence[Outcome[T]], make: Callable[[Row, T], Row]) -> list[Made]:
    """A row for each input row whose outcome is a result; the others stay what they are."""
    return [
        outcome if isinstance(outcome, Failed | Skipped) else make(row, outcome)
        for row, outcome in zip(rows, outcomes, strict=True)
    ]


def own_columns(table: Table, rows: Sequence[Row]) -> pa.Table:
    """Rows as an Arrow table with the table's own columns."""
    schema = pa.schema([pa.field(column.name, column.type) for column in table.columns])
    assert not set(schema.names) & set(LINEAGE_NAMES)
    return pa.Table.from_pylist(list(rows), schema=schema)


def seed_for(platform: Platform, input_id: str) -> int:
    """A seed of 48 bits for one row's draw, the same on every machine, other for another seed of the profile."""
    return seed_of(input_id, str(platform.profile.seed))
