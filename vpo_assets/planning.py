"""What a refresh would do and cost, asset by asset, before anything is paid for.

Belongs here: the plan over the whole graph, with what upstreams are going to bring. Does not belong here: how one
table's plan is made (storage/plan.py), or showing plans (plan_report.py).
"""

import dataclasses
import difflib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from storage.differences import differences
from storage.plan import Mode, Plan, RefreshConfig, pace
from storage.recipe import recall
from storage.tables import QUERIES, RAW_PROMPTS, VBENCH_PROMPTS, VBENCH_VIDEOS, Table
from vpo_assets import prompts, sft
from vpo_assets.evaluation import build_evaluation, other_trainings
from vpo_assets.evaluation_tables import methods_of
from vpo_assets.forecasts import Forecast, after, expected_todo, limited
from vpo_assets.plan_words import changed, reasons
from vpo_assets.platform import Platform
from vpo_assets.prices import PAID_METHOD, PROMPTS_OF_METHODS, budget_of, money_a_row, training_seconds
from vpo_assets.steps import RowStep, SetStep
from vpo_assets.target import build_branch, dpo_training, policy_of, policy_training
from vpo_assets.training import Training
from vpo_assets.transfer import build_transfer
from vpo_assets.vbench import build_vbench, vbench_methods

S = TypeVar("S", RowStep, SetStep)


@dataclass(frozen=True)
class AssetPlan:
    """One asset's plan.

    new, reused, stale, orphaned, failed, todo: rows (or trainings) as things stand now. expected: how many will have
    to be made once the upstreams are refreshed, None if that cannot be told. expected_seconds, money: for those; None
    if unknown. priced: whether its backend takes money at all. why: a line for each reason.
    """

    asset: str
    new: int = 0
    reused: int = 0
    stale: int = 0
    orphaned: int = 0
    failed: int = 0
    todo: int = 0
    expected: int | None = 0
    expected_seconds: float | None = 0.0
    priced: bool = False
    money: float | None = 0.0
    why: tuple[str, ...] = ()

    @property
    def certain(self) -> bool:
        """Whether nothing upstream will add to it."""
        return self.expected == self.todo

    @property
    def idle(self) -> bool:
        """Whether nothing is to be done, now or by what comes."""
        return self.todo == 0 and self.expected == 0


class NoSuchPlan(ValueError):
    """A name that no planned asset has; says which come near."""


def plan_all(
    platform: Platform, mode: Mode = Mode.INCREMENTAL, limit: int | None = None, assets: Collection[str] = ()
) -> list[AssetPlan]:
    """The plans of these assets, all for none, in the order in which they are materialized.

    What other assets would bring if they were refreshed, too, is left out. Raises NoSuchPlan.
    """
    return _Planner(platform, mode, limit).plans(assets)


class _Planner:
    """One look over the graph, upstream first: `forecasts` holds what is known of the assets already seen."""

    def __init__(self, platform: Platform, mode: Mode, limit: int | None) -> None:
        self.platform = platform
        self.mode = mode
        self.limit = limit
        self.forecasts: dict[Table, Forecast] = {}
        self.retrained: dict[str, bool] = {}
        self.manifests = platform.checkpoints.list()

    def plans(self, assets: Collection[str]) -> list[AssetPlan]:
        makers = dict(self._makers())
        for name in assets:
            if name not in makers:
                near = difflib.get_close_matches(name, makers, n=3, cutoff=0.4)
                near += [other for other in makers if other.endswith(f"/{name}") and other not in near]
                raise NoSuchPlan(f"nothing is planned for {name[:80]!r}; near it: {', '.join(near or makers)}")
        return [make() for name, make in makers.items() if not assets or name in assets]

    def _makers(self) -> Iterator[tuple[str, Callable[[], AssetPlan]]]:
        """What makes the plan of each asset, upstream first."""
        yield prompts.QUERIES_STEP.asset, self._queries
        yield from self._of(sft.STEPS, self._rows)
        yield from self._of(sft.SET_STEPS, self._set)
        yield sft.SFT_TRAINING.asset_name, partial(self._training, sft.SFT_TRAINING)
        profile = self.platform.profile
        branches = [build_branch(target, profile) for target in profile.targets]
        for branch in branches:
            yield from self._of(branch.steps, self._rows)
            yield from self._of(branch.set_steps, self._set)
            for training in (branch.training, *([branch.alignment] if branch.alignment else [])):
                yield training.asset_name, partial(self._training, training)
        evaluated = [branch for branch in branches if profile.targets[branch.target].evaluated]
        evaluations = [build_evaluation(branch, profile) for branch in evaluated]  # each may ask for many checkpoints
        for evaluation in evaluations:
            yield from self._of(evaluation.steps, self._rows)
            yield from self._of(evaluation.set_steps, self._set)
        for benchmark in (build_vbench(branch, profile) for branch in branches):
            yield from self._of(benchmark.steps if benchmark else (), self._rows)
            yield from self._of(benchmark.set_steps if benchmark else (), self._set)
        transfer = build_transfer(evaluations)
        yield from self._of([transfer.step] if transfer else [], self._set)

    @staticmethod
    def _of(steps: Iterable[S], make: Callable[[S], AssetPlan]) -> Iterator[tuple[str, Callable[[], AssetPlan]]]:
        for step in steps:
            yield step.asset, partial(make, step)

    def _forecast(self, table: Table) -> Forecast:
        """An asset that is not refreshed stays as it is."""
        return self.forecasts.get(table) or Forecast(self.platform.lake.count(table), 0.0)

    # ---- kinds of assets -----------------------------------------------------------------------------------

    def _queries(self) -> AssetPlan:
        """Raw prompts that are not curated yet, and queries whose raw prompt is gone."""
        raw, curated = RAW_PROMPTS.qualified, QUERIES.qualified
        (row,) = self.platform.lake.query(
            f"SELECT (SELECT count(*) FROM {raw} ANTI JOIN {curated} USING (query_id)) AS new, "
            f"(SELECT count(*) FROM {curated} ANTI JOIN {raw} USING (query_id)) AS gone, "
            f"(SELECT count(*) FROM {curated}) AS rows"
        ).to_pylist()
        self.forecasts[QUERIES] = after(row["rows"], row["new"], row["gone"])
        why = [f"{row['new']:,} raw prompts are not curated yet"] if row["new"] else []
        why += [f"{row['gone']:,} gone: their raw prompt is no longer there"] if row["gone"] else []
        return AssetPlan(
            prompts.QUERIES_STEP.asset,
            new=row["new"],
            reused=row["rows"] - row["gone"],
            orphaned=row["gone"],
            todo=row["new"],
            expected=row["new"],
            why=(*why, *self._set_changes(prompts.QUERIES_STEP)),
        )

    def _rows(self, step: RowStep) -> AssetPlan:
        plan = step.plan(self.platform, self._config(step))
        pending = plan.new + plan.stale + plan.failed - plan.given_up
        whole = self._expected(step, plan, pending)
        expected = limited(whole, self.limit)
        stale = min(plan.stale, plan.todo.num_rows) if self.mode is not Mode.APPEND else 0
        rows = self.platform.lake.count(step.table)
        self.forecasts[step.table] = after(rows, expected, stale + plan.orphaned + self._replaced(step, plan, rows))
        rate = plan.rows_per_second or pace(self.platform.lake, step.table, plan.recipe)
        rounded = None if expected is None else round(expected)
        seconds = 0.0 if rounded == 0 else rounded / rate if rounded is not None and rate else None
        priced, money = self._money(step, plan, expected)
        why = reasons(plan)
        if rounded != plan.todo.num_rows:
            count = "an unknown number" if rounded is None else f"~{rounded:,}"
            why += (f"{count} to do once its upstreams are refreshed",)
        return AssetPlan(
            step.asset,
            plan.new,
            plan.reused,
            plan.stale,
            plan.orphaned,
            plan.failed,
            plan.todo.num_rows,
            rounded,
            seconds,
            priced,
            money,
            why,
        )

    def _set(self, step: SetStep) -> AssetPlan:
        """Computed as a whole in no time that counts; what is written is known only then."""
        rows = self.platform.lake.count(step.table)
        sources = [self._forecast(above.table) for above in step.reads]
        changing = any(source.changes for source in sources)
        self.forecasts[step.table] = self._set_forecast(step, rows, sources)
        why = ("computed as a whole, cheaply; writes what differs",) if changing else ()
        return AssetPlan(step.asset, reused=rows, why=(*why, *self._set_changes(step)))

    def _set_forecast(self, step: SetStep, rows: int, sources: Sequence[Forecast]) -> Forecast:
        """As large a share of the set changes as of the source that changes most."""
        if any(source.coming is None for source in sources):
            return Forecast(rows, None)
        leaving = max(source.leaving for source in sources)
        if rows:
            return Forecast(rows, rows * max(source.share_coming for source in sources), leaving)
        # No row tells how many there are for each of the source: at most one a query.
        settings = self.platform.profile.targets.get(step.table.schema)
        return Forecast(rows, (sources[0].coming or 0.0) / (settings.candidates.per_query if settings else 1))

    def _training(self, training: Training) -> AssetPlan:
        checkpoint_id = training.checkpoint_id(self.platform)
        trained = self.platform.checkpoints.exists(checkpoint_id)
        data = self._forecast(training.data)
        base_changes = training.stage == "dpo" and self._policy_changes(training.target)
        waiting = data.changes or base_changes
        again = not trained or waiting
        self.retrained[training.asset_name] = again
        examples = None if data.coming is None else data.rows * (1 - data.leaving) + data.coming
        seconds = None if examples is None else training_seconds(self.manifests, training, self.platform, examples)
        if trained:
            why = [f"{checkpoint_id} is trained"]
            why += ["its data will change"] if data.changes else []
            why += ["the policy it starts from will change"] if base_changes else []
        else:
            # The id holds a hash of the data, so it is not known before the data is.
            named = "to be trained once its upstreams are refreshed" if waiting else f"to be trained as {checkpoint_id}"
            why = [named, *self._training_changes(training)]
        return AssetPlan(
            training.asset_name,
            new=0 if trained else 1,
            reused=1 if trained else 0,
            todo=0 if trained else 1,
            expected=1 if again else 0,
            expected_seconds=seconds if again else 0.0,
            why=tuple(why),
        )

    # ---- what upstreams bring ------------------------------------------------------------------------------

    def _expected(self, step: RowStep, plan: Plan, pending: int) -> float | None:
        """Rows to make once upstreams are refreshed, without the limit."""
        settings = self.platform.profile.targets.get(step.table.schema)
        seeds = 1.0
        if settings is not None and step.table.name == "videos":
            seeds = settings.seeds_per_prompt
        elif settings is not None and step.table.name == "eval_videos":
            seeds = settings.evaluation.seeds_per_prompt
        elif settings is not None and settings.evaluation.vbench and step.table.name == VBENCH_VIDEOS.name:
            seeds = settings.evaluation.vbench.videos_per_prompt
        if step.reads:
            return expected_todo(pending, plan.inputs, self._forecast(step.reads[0].table), seeds)
        queries = self._forecast(QUERIES)
        anew = self._share_written_anew(step) * plan.inputs
        others = pending if not anew else self._of_other_methods(step, plan)
        if step.table.name == VBENCH_PROMPTS.name:
            return others + round(anew)  # its queries are VBench's own, which do not change
        return expected_todo(others + round(anew), plan.inputs, queries, self._rows_a_query(step))

    def _replaced(self, step: RowStep, plan: Plan, rows: int) -> int:
        """Rows that another policy will write anew, beyond those that are known to be."""
        share = self._share_written_anew(step)
        return max(0, round(share * rows) - plan.stale - plan.orphaned) if self.limit is None else 0

    def _of_other_methods(self, step: RowStep, plan: Plan) -> int:
        """Of the rows to do now, those that no policy writes."""
        if step.table.name not in PROMPTS_OF_METHODS:
            return 0
        written = {method for method, name in self._policies(step.table) if self.retrained.get(name)}
        return sum(method not in written for method in plan.todo["method"].to_pylist())

    def _policies(self, table: Table) -> list[tuple[str, str]]:
        """Methods that a table has prompts of, with the training that each is written by."""
        target = table.schema
        others = other_trainings(self.platform.profile, target)
        named = [(method, training.asset_name) for method, training in others.items()]
        found = [("sft", sft.SFT_TRAINING.asset_name), ("vpo", dpo_training(target).asset_name), *named]
        return [(method, name) for method, name in found if method in self._methods(table)]

    def _share_written_anew(self, step: RowStep) -> float:
        """Of a step that a policy writes for: the share of its rows whose policy is going to be another."""
        target = step.table.schema
        if step.table.name == "candidates":
            return 1.0 if self._policy_changes(target) else 0.0
        if step.table.name in PROMPTS_OF_METHODS:
            anew = sum(self.retrained.get(name, False) for _, name in self._policies(step.table))
            return anew / len(self._methods(step.table))
        return 0.0

    def _policy_changes(self, target: str | None) -> bool:
        assert target is not None
        profile = self.platform.profile
        training = policy_training(profile, policy_of(profile, target))
        return training is not None and self.retrained.get(training.asset_name, False)

    def _methods(self, table: Table) -> list[str]:
        """Those that a table has prompts of."""
        if table.name == VBENCH_PROMPTS.name:
            return vbench_methods(self.platform.profile, table.schema)
        return methods_of(self.platform, table.schema)

    def _rows_a_query(self, step: RowStep) -> float:
        """By the settings, where no row tells: at most, for curation drops some queries."""
        curation = self.platform.profile.queries.curation
        if step.table.name == "drafts":
            return curation.sft_share
        if step.table.name == "candidates":
            return curation.dpo_share * self.platform.target(step.table.schema).candidates.per_query
        return curation.test_share * len(self._methods(step.table))

    # ---- money and words -----------------------------------------------------------------------------------

    def _money(self, step: RowStep, plan: Plan, expected: float | None) -> tuple[bool, float | None]:
        """Whether the step's rows cost money, and how much the expected ones will."""
        budget = budget_of(self.platform, step.table)
        if budget is None:
            return False, 0.0
        if "method" in plan.todo.column_names and step.table.name == "eval_prompts":
            asked = plan.todo["method"].to_pylist().count(PAID_METHOD)
            queries = self._forecast(QUERIES)
            methods = len(self._methods(step.table))
            expected = expected_todo(asked, plan.inputs // methods, queries, self._rows_a_query(step) / methods)
            expected = limited(expected, self.limit)
        elif step.table.name == VBENCH_PROMPTS.name:
            expected = limited(plan.todo["method"].to_pylist().count(PAID_METHOD), self.limit)
        if expected == 0:
            return True, 0.0
        each = money_a_row(self.platform, step.table, budget, plan.recipe.id)
        return True, None if each is None or expected is None else each * expected

    def _set_changes(self, step: SetStep) -> tuple[str, ...]:
        """What is different from the settings that its last changed rows were made with."""
        lake = self.platform.lake
        last = lake.query(f"SELECT arg_max(recipe, made_at) AS recipe FROM {step.table.qualified}")[
            "recipe"
        ].to_pylist()
        before = recall(lake, [recipe for recipe in last if recipe])
        said = changed(differences(before[0], step.full_recipe(self.platform).parts)) if before else ""
        return (f"since its rows were last written: {said}",) if said else ()

    def _training_changes(self, training: Training) -> list[str]:
        """What is different from the last training of the same asset."""
        of_asset = [m for m in self.manifests if m.stage == training.stage and m.target == training.target]
        if not of_asset:
            return []
        said = changed(differences(of_asset[-1].recipe, training.recipe(self.platform).parts))
        return [f"differs from {of_asset[-1].id}: {said}"] if said else []

    def _config(self, step: RowStep) -> RefreshConfig:
        base = self.platform.profile.refresh.config(step.batch_size(self.platform))
        return dataclasses.replace(base, mode=self.mode, limit=self.limit)
