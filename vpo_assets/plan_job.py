"""The plan in Dagster: a job that shows what a refresh would do, and does none of it.

Belongs here: the job. Does not belong here: making plans (planning.py) or laying them out (plan_report.py).
"""

from typing import Any

from dagster import (
    AssetKey,
    AssetObservation,
    Config,
    MetadataValue,
    OpExecutionContext,
    ResourceParam,
    in_process_executor,
    job,
    op,
)
from pydantic import Field

from storage.plan import Mode
from vpo_assets.plan_report import markdown, plan_rows, total
from vpo_assets.planning import AssetPlan, plan_all
from vpo_assets.platform import Platform
from vpo_assets.report.tables import escape_markdown

PLAN = "plan"


class PlanOptions(Config):
    """What the Launchpad offers: the refresh that is planned for."""

    mode: Mode = Field(default=Mode.INCREMENTAL, description="incremental, full or append, as for the tables")
    limit: int | None = Field(default=None, ge=1, description="so many rows of each table at most")


@op(name="plan_assets")
def plan_assets(context: OpExecutionContext, config: PlanOptions, platform: ResourceParam[Platform]) -> None:
    """Plan every asset: rows new, stale and why, reused, gone; time, and money where the backend has prices.

    Nothing is computed. What was planned is observed on each asset, without a data version, so that no asset becomes
    stale by it.
    """
    plans = plan_all(platform, config.mode, config.limit)
    for plan, row in zip(plans, plan_rows(plans), strict=True):
        shown = ", ".join(f"{name} {value}" for name, value in row.items() if name != "asset")
        context.log.info(f"{plan.asset}: {shown}{''.join(f'; {reason}' for reason in plan.why)}")
        context.log_event(AssetObservation(AssetKey(plan.asset.split("/")), metadata=observed(plan)))
    context.log.info(total(plans))
    context.add_output_metadata({"plan": MetadataValue.md(markdown(plans)), "total": total(plans)})


@job(name=PLAN, executor_def=in_process_executor, description="What a refresh would do and cost; computes nothing.")
def plan_job() -> None:
    """The one step."""
    plan_assets()


def observed(plan: AssetPlan) -> dict[str, Any]:
    """A plan as metadata of its asset. Unknown figures are words, for metadata has no missing numbers."""
    figures: dict[str, Any] = {
        "planned_rows": "unknown" if plan.expected is None else plan.expected,
        "to_do_now": plan.todo,
        "planned_hours": "unknown" if plan.expected_seconds is None else round(plan.expected_seconds / 3600, 4),
        "why": MetadataValue.md("\n".join(f"- {escape_markdown(reason)}" for reason in plan.why) or "nothing to do"),
    }
    if plan.priced:
        figures["planned_money"] = "unknown" if plan.money is None else round(plan.money, 4)
    return figures
