"""From steps to Dagster assets: the one place where a refresh meets a run.

Belongs here: the factories that every table asset is made with. Does not belong here: the steps themselves.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    Config,
    DataVersion,
    MaterializeResult,
    ResourceParam,
    asset,
)
from pydantic import Field

from storage.plan import Plan
from storage.refresh import Mode, Progress, RefreshConfig
from storage.tables import Table
from vpo_assets.free_disk import stop_if_disk_is_full
from vpo_assets.metadata import failed_rows, figures_metadata, plan_metadata, table_metadata
from vpo_assets.plan_words import in_one_line
from vpo_assets.platform import Platform
from vpo_assets.provenance import check_at_the_door
from vpo_assets.steps import RowStep, SetStep
from vpo_assets.watched_work import WatchedWork

OWNERS = ["team:prompt-optimization"]
GPU_POOL = "gpu"
SECONDS_BETWEEN_LINES = 5.0

Figures = Callable[[Platform], Mapping[str, Any]]


class SetOptions(Config):
    """What the Launchpad offers for a table that is computed as a whole."""

    accept_stale_inputs: bool = Field(
        default=False, description="go on although what it reads was not made by what the profile names"
    )


class RefreshOptions(SetOptions):
    """What the Launchpad offers for a table: how to refresh it this time."""

    mode: Mode = Field(
        default=Mode.INCREMENTAL,
        description="incremental: what is missing or stale; full: everything; append: keep rows of earlier recipes",
    )
    limit: int | None = Field(default=None, description="compute so many rows at most")
    retry_failures: bool = Field(default=True, description="try quarantined rows again")

    def refresh_config(self, platform: Platform, batch_size: int) -> RefreshConfig:
        """These options with the profile's own."""
        base = platform.profile.refresh.config(batch_size)
        return RefreshConfig(
            mode=self.mode,
            limit=self.limit,
            retry_failures=self.retry_failures,
            max_attempts=base.max_attempts,
            max_failure_ratio=base.max_failure_ratio,
            batch_size=base.batch_size,
        )


def key_prefix(table: Table) -> list[str]:
    """The trunk's assets have none; a branch's are under their target's name."""
    return [] if table.schema == "main" else [table.schema]


def row_asset(
    step: RowStep,
    *,
    description: str,
    deps: Sequence[str],
    kinds: set[str],
    uses_model: bool = False,
    figures: Figures | None = None,
) -> AssetsDefinition:
    """The asset of a step that makes its rows one by one. `figures` adds pictures and tables to look at."""

    @asset(
        name=step.table.name,
        key_prefix=key_prefix(step.table),
        deps=[_key(dep) for dep in deps],
        description=description,
        group_name=group(step.table),
        kinds=kinds | {"duckdb"},
        owners=OWNERS,
        code_version=step.code_version,
        pool=GPU_POOL if uses_model else None,
    )
    def materialize(
        context: AssetExecutionContext, config: RefreshOptions, platform: ResourceParam[Platform]
    ) -> MaterializeResult[Any]:
        check_at_the_door(context, platform, step, accept=config.accept_stale_inputs)
        options = config.refresh_config(platform, step.batch_size(platform))
        planned: dict[str, Any] = {}

        def announce(plan: Plan) -> None:
            context.log.info(in_one_line(plan))
            planned.update(plan_metadata(plan))

        watched = WatchedWork(step.mapper(platform), lambda: stop_if_disk_is_full(platform, step.asset))
        progress = _progress_lines(context, step.table)
        report = step.refresh(platform, options, context.run_id, progress, announce=announce, mapper=watched)
        for line in failed_rows(platform, step.table, planned["recipe"]) if report.failed else ():
            context.log.warning(line)
        metadata = table_metadata(platform, step.table, report, context.run_id) | planned
        metadata |= {
            "seconds_in_model": round(watched.model_seconds, 2),
            "seconds_in_storage": round(watched.storage_seconds, 2),
        }
        if figures is not None:
            metadata |= figures_metadata(figures(platform))
        return MaterializeResult(metadata=metadata, data_version=DataVersion(report.data_version))

    return materialize


def set_asset(
    step: SetStep, *, description: str, deps: Sequence[str], kinds: set[str] | None = None
) -> AssetsDefinition:
    """The asset of a step whose rows are a function of a whole set."""

    @asset(
        name=step.table.name,
        key_prefix=key_prefix(step.table),
        deps=[_key(dep) for dep in deps],
        description=description,
        group_name=group(step.table),
        kinds=(kinds or set()) | {"duckdb"},
        owners=OWNERS,
        code_version=step.code_version,
    )
    def materialize(
        context: AssetExecutionContext, config: SetOptions, platform: ResourceParam[Platform]
    ) -> MaterializeResult[Any]:
        check_at_the_door(context, platform, step, accept=config.accept_stale_inputs)
        stop_if_disk_is_full(platform, step.asset)
        started = time.monotonic()
        report, figures = step.rebuild(platform, context.run_id)
        computing = max(0.0, time.monotonic() - started - report.seconds)
        metadata = table_metadata(platform, step.table, report, context.run_id)
        metadata = {**(_last_metadata(context) if figures is None else figures_metadata(figures)), **metadata}
        metadata |= {
            "recipe": step.full_recipe(platform).id,
            "seconds_in_model": round(computing, 2),
            "seconds_in_storage": round(report.seconds, 2),
        }
        return MaterializeResult(metadata=metadata, data_version=DataVersion(report.data_version))

    return materialize


def _last_metadata(context: AssetExecutionContext) -> Mapping[str, Any]:
    """What the asset's last materialization showed."""
    event = context.instance.get_latest_materialization_event(context.asset_key)
    shown = event.asset_materialization if event else None
    return shown.metadata if shown else {}


def group(table: Table) -> str:
    """The group of a table's asset: `trunk`, or its target."""
    return "trunk" if table.schema == "main" else table.schema


def _key(dep: str) -> list[str]:
    """`shapes/videos` as Dagster's asset key parts."""
    return dep.split("/")


def _progress_lines(context: AssetExecutionContext, table: Table) -> Callable[[Progress], None]:
    """A line in the run's log every few seconds, and one at the end."""
    last = 0.0

    def show(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_LINES and progress.done < progress.total:
            return
        last = now
        left = progress.remaining_seconds or 0.0
        context.log.info(
            f"{table.label}: {progress.done}/{progress.total} rows, {progress.rows_per_second:.2f} rows/s, "
            f"{progress.failed} failed, {left:.0f} s left"
        )

    return show
