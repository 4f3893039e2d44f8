"""Provenance at the door: whether what an asset is about to read was made by what the profile names.

Belongs here: looking at upstream tables, checkpoints and checks before an asset works, and saying which asset to
refresh first. Does not belong here: what is true of a table's own rows (checks.py), or refreshing anything.

Everything is asked of recipes and catalogs, never of the rows themselves, so that it costs milliseconds.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Set
from typing import Any

import pyarrow as pa
from dagster import AssetCheckKey, AssetCheckSeverity, AssetExecutionContext, AssetKey, DagsterInstance
from dagster._check import CheckError
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from resources.outcome import Unavailable
from storage.lake import sql_type
from storage.plan import RefreshConfig, plan
from storage.recipe import Recipe
from storage.tables import LAKE, Table
from vpo_assets.plan_words import changed
from vpo_assets.platform import Platform
from vpo_assets.report.plain_text import one_line
from vpo_assets.steps import RowStep, Step

OVERRIDE = "accept_stale_inputs"
SHORTENED = 3


class StaleInputs(RuntimeError):
    """What an asset would read was not made by what the profile names; says which asset to refresh first."""


def check_at_the_door(context: AssetExecutionContext, platform: Platform, step: Step, *, accept: bool) -> None:
    """Raise StaleInputs if the step's inputs are not what the profile would make; with `accept`, only warn.

    Upstreams that this very run has refreshed are as it was asked to leave them (say, by a limit), and pass.
    """
    fresh = {asset.to_user_string() for asset in _assets_of_run(context)}
    warn = context.log.warning
    _refuse(context, faults_of(platform, step, fresh, warn), accept=accept)


def check_training_at_the_door(
    context: AssetExecutionContext, platform: Platform, policy: str | None, *, accept: bool
) -> None:
    """The same for a training: `policy` is the checkpoint that it starts from, None for a base model."""
    _refuse(context, [] if policy is None else list(other_base(platform, policy)), accept=accept)


def _refuse(context: AssetExecutionContext, faults: list[str], *, accept: bool) -> None:
    """Raise StaleInputs for these faults and for upstreams' failed checks; with `accept`, warn of them."""
    faults = [*faults, *failed_checks(context.instance, _asset_graph(context), context.asset_key)]
    if faults and not accept:
        raise StaleInputs("\n".join([*faults, f"({OVERRIDE} in the asset's options goes on all the same)"]))
    for fault in faults:
        context.log.warning(f"{fault} (accepted)")


def faults_of(platform: Platform, step: Step, fresh: Collection[str], warn: Callable[[str], None]) -> list[str]:
    """What is wrong with a step's inputs, one line each. `fresh`: assets whose rows need not be looked at."""
    found = list(schema_faults(platform, [step.table, *(above.table for above in step.reads)], warn))
    if found:
        return found  # nothing can be asked of a table that is not as it should be
    found += stale_faults(platform, [above for above in step.reads if above.asset not in fresh], warn)
    return [*found, *step.faults(platform)]


def stale_faults(platform: Platform, steps: Iterable[RowStep], warn: Callable[[str], None]) -> Iterator[str]:
    """One line for each table with rows that a refresh would make anew. Rows beside a present one (append) do not
    count, nor do rows whose input is gone or in quarantine."""
    recipes = {}
    for step in steps:
        try:
            recipes[step.asset] = (step, step.full_recipe(platform))
        except Unavailable as error:
            warn(f"{step.asset}: whether it is up to date cannot be told: {one_line(error)}")
    if not recipes:
        return
    counts = " UNION ALL ".join(
        f"SELECT ? AS asset, count(*) AS n FROM {step.table.qualified} WHERE recipe <> ?"
        for step, _ in recipes.values()
    )
    asked = [value for asset, (_, recipe) in recipes.items() for value in (asset, recipe.id)]
    for found in platform.lake.query(counts, asked).to_pylist():
        if found["n"]:
            yield from _stale_fault(platform, *recipes[found["asset"]])


def _stale_fault(platform: Platform, step: RowStep, recipe: Recipe) -> Iterator[str]:
    """The same of one table that has rows of other recipes."""
    planned = plan(platform.lake, step.table, step.inputs(platform), recipe, RefreshConfig(limit=0))
    if planned.stale:
        why = "; ".join(changed(one.differences) for one in planned.stale_by[:SHORTENED])
        yield (
            f"{step.asset} has {planned.stale:,} of {planned.inputs:,} rows that the profile would make otherwise "
            f"({why}): refresh {step.asset} first"
        )


def schema_faults(platform: Platform, tables: Iterable[Table], warn: Callable[[str], None]) -> Iterator[str]:
    """Columns that this version needs and the lake has not, or has with another type. More columns are warned of."""
    wanted = {(table.schema, table.name): table for table in tables}
    asked = pa.table({"schema": [schema for schema, _ in wanted], "name": [name for _, name in wanted]})
    rows = platform.lake.query(
        "SELECT schema_name AS schema, table_name AS name, column_name AS column, data_type AS type "
        "FROM duckdb_columns() SEMI JOIN asked ON schema_name = asked.schema AND table_name = asked.name "
        "WHERE database_name = ?",
        [LAKE],
        asked=asked,
    ).to_pylist()
    there: dict[tuple[str, str], dict[str, str]] = {key: {} for key in wanted}
    for row in rows:
        there[row["schema"], row["name"]][row["column"]] = row["type"]
    for key, table in wanted.items():
        yield from _column_faults(table, there[key], warn)


def other_base(platform: Platform, checkpoint_id: str) -> Iterator[str]:
    """One line if a checkpoint goes back to another base model than the profile's."""
    base = root_base(platform, checkpoint_id)
    if base is not None and base != platform.base_model_name:
        yield (
            f"checkpoint {checkpoint_id} was trained from {one_line(base, 120)}, the profile trains "
            f"{one_line(platform.base_model_name, 120)}: name a checkpoint of that model in candidates.policy, or name "
            "its own base model in the profile"
        )


def root_base(platform: Platform, checkpoint_id: str) -> str | None:
    """The model that a checkpoint's line of trainings began with; None where the line is broken."""
    line = platform.checkpoints.lineage(checkpoint_id)
    return next((manifest.base for manifest in line if manifest.stage == "sft"), None)


def _column_faults(table: Table, there: dict[str, str], warn: Callable[[str], None]) -> Iterator[str]:
    label = table.label
    if not there:
        yield f"table {label} is not in the lake: refresh {label.replace('.', '/')} first"
        return
    columns = {column.name: _spelled(sql_type(column.type)) for column in table.all_columns}
    missing = sorted(columns.keys() - there.keys())
    others = [name for name in columns.keys() & there.keys() if _spelled(there[name]) != columns[name]]
    if missing:
        yield f"table {label} lacks the columns {', '.join(missing)}: its lake was made by another version"
    for name in sorted(others):
        yield (
            f"table {label} has {name} as {one_line(there[name], 80)}, this version needs {columns[name][:80]}: export "
            "the table, and begin a new home"
        )
    if more := sorted(there.keys() - columns.keys()):
        warn(f"table {label} has columns that this version does not know: {one_line(', '.join(more), 200)}")


def _spelled(type_: str) -> str:
    """One spelling of a DuckDB type: names of struct fields are quoted only where they must be."""
    return type_.replace('"', "").replace("TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ").upper()


def _assets_of_run(context: AssetExecutionContext) -> set[AssetKey]:
    chosen = context.run.asset_selection
    return set(context.job_def.asset_layer.selected_asset_keys if chosen is None else chosen)


def _asset_graph(context: AssetExecutionContext) -> BaseAssetGraph[Any]:
    """The whole graph where the run comes from a code location, as all but tests' runs do; else that of the run."""
    try:
        return context.repository_def.asset_graph
    except CheckError:
        return context.job_def.asset_layer.asset_graph


def failed_checks(instance: DagsterInstance, graph: BaseAssetGraph[Any], asset: AssetKey) -> Iterator[str]:
    """A line for each blocking check of the direct upstreams that failed: Dagster itself lets them block within their
    own run only."""
    for key in failed_blocking_checks(instance, graph, set(graph.get(asset).parent_keys)):
        name = key.asset_key.to_user_string()
        yield f"{name} failed its check {key.name}: see what it says, mend that, and refresh {name} first"


def failed_blocking_checks(
    instance: DagsterInstance, graph: BaseAssetGraph[Any], assets: Set[AssetKey]
) -> Iterator[AssetCheckKey]:
    """Blocking checks of these assets that failed on their last materialization."""
    checks = [key for key in graph.get_check_keys_for_assets(assets) if graph.get(key).blocking]
    records = instance.event_log_storage.get_latest_asset_check_execution_by_key(checks)
    for key, record in records.items():
        if record.status is not AssetCheckExecutionRecordStatus.FAILED or record.event is None:
            continue
        evaluation = record.event.asset_check_evaluation  # None where the check itself broke down
        if evaluation is None or evaluation.severity is not AssetCheckSeverity.ERROR:
            continue
        judged = evaluation.target_materialization_data
        last = instance.get_latest_materialization_event(key.asset_key)
        if judged is not None and last is not None and judged.timestamp < last.timestamp:
            continue  # what it failed on has been made anew since
        yield key
