"""What a refresh would do and cost, asset by asset, before anything is paid for.

Belongs here: the plan over the whole graph. Does not belong here: how one table's plan is made (storage/plan.py).
"""

from dataclasses import dataclass

from storage.plan import RefreshConfig
from vpo_assets import prompts, sft
from vpo_assets.evaluation import build_evaluation
from vpo_assets.platform import Platform
from vpo_assets.steps import RowStep, SetStep
from vpo_assets.target import build_branch
from vpo_assets.training import Training


@dataclass(frozen=True)
class AssetPlan:
    """One asset's plan. It counts what is known now: rows that its upstreams will bring come on top."""

    asset: str
    new: int
    reused: int
    stale: int
    orphaned: int
    failed: int
    todo: int
    expected_seconds: float | None
    why: str


def plan_all(platform: Platform) -> list[AssetPlan]:
    """The plans of all assets, in the order in which they are materialized."""
    plans = [_set_plan(prompts.QUERIES_STEP)]
    plans += [_row_plan(platform, step) for step in sft.STEPS]
    plans += [_set_plan(step) for step in sft.SET_STEPS]
    plans.append(_training_plan(platform, sft.SFT_TRAINING))
    for target in platform.profile.targets:
        branch = build_branch(target)
        evaluation = build_evaluation(branch)
        plans += [_row_plan(platform, step) for step in branch.steps]
        plans += [_set_plan(step) for step in branch.set_steps]
        plans.append(_training_plan(platform, branch.training))
        plans += [_row_plan(platform, step) for step in evaluation.steps]
        plans += [_set_plan(step) for step in evaluation.set_steps]
    return plans


def _row_plan(platform: Platform, step: RowStep) -> AssetPlan:
    config: RefreshConfig = platform.profile.refresh.config(step.batch_size(platform))
    plan = step.plan(platform, config)
    return AssetPlan(
        asset=step.table.label.replace(".", "/"),
        new=plan.new,
        reused=plan.reused,
        stale=plan.stale,
        orphaned=plan.orphaned,
        failed=plan.failed,
        todo=plan.todo.num_rows,
        expected_seconds=plan.expected_seconds,
        why=f"changed: {', '.join(plan.changed)}" if plan.changed else "",
    )


def _set_plan(step: SetStep) -> AssetPlan:
    name = step.table.label.replace(".", "/")
    return AssetPlan(name, 0, 0, 0, 0, 0, 0, 0.0, "computed as a whole, cheaply; writes what differs")


def _training_plan(platform: Platform, training: Training) -> AssetPlan:
    checkpoint_id = training.checkpoint_id(platform)
    trained = platform.checkpoints.exists(checkpoint_id)
    return AssetPlan(
        asset=training.asset_name,
        new=0 if trained else 1,
        reused=1 if trained else 0,
        stale=0,
        orphaned=0,
        failed=0,
        todo=0 if trained else 1,
        expected_seconds=0.0 if trained else None,
        why=checkpoint_id if trained else f"to be trained as {checkpoint_id}",
    )
