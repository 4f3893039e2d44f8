"""The one place where assets, checks, jobs and resources are put together.

Belongs here: `build_defs`, the seam that tests and the code location use. Does not belong here: any asset.
"""

from collections.abc import Mapping
from typing import Any

from dagster import AssetKey, AssetSelection, Definitions, define_asset_job, in_process_executor

from resources.settings import Profile, load_profile
from storage.tables import RAW_PROMPTS
from vpo_assets import prompts, sft
from vpo_assets.automation import following, triggers
from vpo_assets.checks import TRUNK_CHECKS, branch_checks, removed_query_check, schema_check, weights_check
from vpo_assets.evaluation import EvaluationBranch, build_evaluation
from vpo_assets.maintenance import maintenance_job, maintenance_schedule
from vpo_assets.plan_job import plan_job
from vpo_assets.platform import Platform, quiet_libraries
from vpo_assets.publishing.assets import ON_REQUEST, publishing_assets
from vpo_assets.steps import Step
from vpo_assets.target import Branch, build_branch
from vpo_assets.transfer import build_transfer
from vpo_assets.upkeep import dead_runs
from vpo_assets.vbench import VbenchBranch, build_vbench

EVERYTHING = "everything"
DATASETS = "datasets"


def build_defs(profile: Profile, resource_overrides: Mapping[str, Any] | None = None) -> Definitions:
    """All definitions of a profile: the trunk, and a branch for each of its targets."""
    quiet_libraries()
    branches = [build_branch(target, profile) for target in profile.targets]
    evaluations = [build_evaluation(branch, profile) for branch in branches if profile.targets[branch.target].evaluated]
    benchmarks = [made for branch in branches if (made := build_vbench(branch, profile))]
    parts: list[Branch | EvaluationBranch | VbenchBranch] = [*branches, *evaluations, *benchmarks]
    transfer = build_transfer(evaluations)
    steps: list[Step] = [prompts.QUERIES_STEP, *sft.STEPS, *sft.SET_STEPS]
    for part in parts:
        steps += [*part.steps, *part.set_steps]
    if transfer:
        steps.append(transfer.step)
    checks = [schema_check(table) for table in (RAW_PROMPTS, *(step.table for step in steps))]
    checks += [*TRUNK_CHECKS, weights_check(sft.SFT_TRAINING), removed_query_check(sft.SFT_TRAINING)]
    for branch in branches:
        checks += branch_checks(branch, evaluated=profile.targets[branch.target].evaluated)
    assets = following(
        [
            prompts.raw_prompts,
            prompts.queries,
            *sft.ASSETS,
            *(asset for part in parts for asset in part.assets),
            *([transfer.asset] if transfer else []),
        ],
        profile.automation,
    )
    sensors, schedule = triggers(assets, profile)
    on_request = [asset for evaluated in evaluations for asset in publishing_assets(evaluated.target)]
    everything = AssetSelection.all() - AssetSelection.tag(ON_REQUEST, "true")
    trunk_datasets = [AssetKey(name) for name in ("raw_prompts", "queries", "drafts", "draft_critiques", "sft_dataset")]
    return Definitions(
        assets=[*assets, *on_request],
        asset_checks=checks,
        jobs=[
            define_asset_job(EVERYTHING, everything, description="From queries to the evaluation."),
            define_asset_job(
                DATASETS,
                AssetSelection.assets(*trunk_datasets),
                description="The trunk's datasets, without training.",
            ),
            plan_job,
            maintenance_job,
        ],
        sensors=[*sensors, dead_runs],
        schedules=[schedule, maintenance_schedule],
        resources={"platform": Platform(profile), **(resource_overrides or {})},
        # One process a run: a model loads once an asset either way, and a laptop's cores are spent on the work.
        executor=in_process_executor,
    )


def _definitions() -> Definitions:
    return build_defs(load_profile())


defs = _definitions()
