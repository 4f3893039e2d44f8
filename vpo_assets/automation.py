"""Runs that start by themselves: new files are taken in, and what they change is carried downstream.

Belongs here: which asset follows which on its own, and the sensors and the schedule that start its runs. Does not
belong here: what a run does, or which files of the inbox are whole (storage/inbox.py).

Three parts. A sensor takes files of the inbox in, each content once. Every other asset has a condition: it is
refreshed when what it is made from has other contents than before, up to the next checkpoint; training starts by
itself only where the profile says so. A sweeper finds what the conditions miss: they compare two moments, so an
update that lands while a run is under way, or whose follower failed, is seen by nobody. It looks at what each asset was
made from instead.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dagster import (
    AssetKey,
    AssetsDefinition,
    AssetSelection,
    AssetSpec,
    AutomationCondition,
    AutomationConditionSensorDefinition,
    DagsterInstance,
    DagsterRunStatus,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    ResourceParam,
    RunRequest,
    RunsFilter,
    ScheduleDefinition,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    map_asset_specs,
    sensor,
)
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph
from dagster._core.definitions.data_version import DATA_VERSION_TAG, get_input_data_version_tag

from resources.settings import AutomationSettings, Profile
from storage.ids import content_id
from storage.inbox import unknown_files
from storage.tables import QUERIES, RAW_PROMPTS
from vpo_assets.platform import Platform
from vpo_assets.provenance import failed_blocking_checks

RAW = AssetKey(RAW_PROMPTS.name)
CURATED = AssetKey(QUERIES.name)
CHECKPOINT_ENDING, VIDEO_MODEL = "_checkpoint", "video_model"
DAILY = "0 3 * * *"
FOLLOWS = "vpo/follows"
"""The asset's metadata that names what it follows on its own."""
FILES = "vpo/files"
"""The tag of a run that names the files that it is for."""
TRIES = 3
"""Runs for the same files of the inbox, if they fail."""
UNDER_WAY = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]
STARTED_BY = "vpo/started_by"


def following(assets: Iterable[AssetsDefinition], settings: AutomationSettings) -> list[AssetsDefinition]:
    """The assets with their conditions: what each of them follows on its own."""

    def with_condition(spec: AssetSpec) -> AssetSpec:
        followed = followed_by(spec, settings)
        if not followed:
            return spec
        return spec.replace_attributes(
            automation_condition=_follows((dep.asset_key for dep in spec.deps), followed),
            metadata={**spec.metadata, FOLLOWS: ", ".join(key.to_user_string() for key in sorted(followed))},
        )

    return list(map_asset_specs(with_condition, assets))


def followed_by(spec: AssetSpec, settings: AutomationSettings) -> set[AssetKey]:
    """The upstreams whose changes refresh this asset without anyone asking.

    Raw prompts follow files, not assets. Checkpoints follow their data only if training on its own is wanted. Where
    it is not, the branches do not follow the queries either: new queries ask for a new checkpoint first, and what is
    made with the policy waits for it; and what needs SFT's and DPO's checkpoint follows DPO's, which is later.
    """
    upstreams = {dep.asset_key for dep in spec.deps}
    if settings.training:
        return upstreams
    if is_checkpoint(spec.key):
        return set()
    if not is_of_branch(spec.key):
        return upstreams
    checkpoints = {key for key in upstreams if is_checkpoint(key)}
    later = {key for key in checkpoints if is_of_branch(key)}
    return upstreams - {CURATED} - (checkpoints - later if later else set())


def is_of_branch(key: AssetKey) -> bool:
    """Whether an asset belongs to one target, not to the trunk."""
    return len(key.path) > 1


def is_checkpoint(key: AssetKey) -> bool:
    """Whether an asset is trained."""
    return key.path[-1].endswith(CHECKPOINT_ENDING) or key.path[-1] == VIDEO_MODEL


def _follows(upstreams: Iterable[AssetKey], followed: set[AssetKey]) -> AutomationCondition[Any]:
    """Other contents of one of these, everything there, nobody at work on it, and no blocking check failed.

    Dagster's `eager` would go by runs, whether or not they changed anything. That blocking checks passed must be said:
    by itself a check stops only what stands in its own run.
    """
    changed = AutomationCondition.any_deps_match(
        (AutomationCondition.data_version_changed() & ~AutomationCondition.executed_with_root_target())
        | AutomationCondition.will_be_requested()
    )
    others = sorted(set(upstreams) - followed)
    if others:
        changed = changed.ignore(AssetSelection.assets(*others))
    return (
        (AutomationCondition.newly_missing() | changed).since_last_handled()
        & ~AutomationCondition.any_deps_missing()
        & ~AutomationCondition.any_deps_in_progress()
        & ~AutomationCondition.in_progress()
        & AutomationCondition.all_deps_blocking_checks_passed()
    ).with_label("follows")


def triggers(assets: Sequence[AssetsDefinition], profile: Profile) -> tuple[list[SensorDefinition], ScheduleDefinition]:
    """What starts runs. Switched on from the start where the profile says so, else in the UI."""
    settings = profile.automation
    status = DefaultSensorStatus.RUNNING if settings.running else DefaultSensorStatus.STOPPED
    conditions = AutomationConditionSensorDefinition(
        "follow",
        target=AssetSelection.all(),
        run_tags={STARTED_BY: "follow"},
        default_status=status,
        description="Refreshes what is made from contents that changed, up to the next checkpoint.",
    )
    schedule = ScheduleDefinition(
        name="query_files",
        target=AssetSelection.assets(RAW),
        cron_schedule=settings.cron or DAILY,
        default_status=DefaultScheduleStatus.RUNNING if settings.cron else DefaultScheduleStatus.STOPPED,
        description="Looks at the profile's query files again.",
        tags={STARTED_BY: "query_files"},
    )
    specs = [spec for definition in assets for spec in definition.specs]
    return [conditions, _inbox_sensor(settings, status), _sweeper(specs, settings, status)], schedule


def _inbox_sensor(settings: AutomationSettings, status: DefaultSensorStatus) -> SensorDefinition:
    @sensor(
        name="inbox",
        asset_selection=AssetSelection.assets(RAW),
        minimum_interval_seconds=settings.inbox_seconds,
        default_status=status,
    )
    def inbox(context: SensorEvaluationContext, platform: ResourceParam[Platform]) -> RunRequest | SkipReason:
        """Takes whole files of the inbox in that were not taken in yet, whatever their names."""
        files = unknown_files(platform.lake, platform.inbox)
        if not files:
            return SkipReason(f"no new file in {platform.inbox}")
        if RAW in assets_under_way(context.instance, [RAW]):
            return SkipReason("raw_prompts is being refreshed; what it leaves is taken in afterwards")
        found = content_id(*(f"{file.name} {file.bytes} {file.mtime_ns}" for file in files))
        tries = len(context.instance.get_runs(RunsFilter(tags={FILES: found})))
        if tries >= TRIES:
            return SkipReason(f"{len(files)} files could not be taken in by {tries} runs: see why they failed")
        return RunRequest(run_key=f"{found} {tries}", tags={STARTED_BY: "inbox", FILES: found})

    return inbox


def _sweeper(specs: Sequence[AssetSpec], settings: AutomationSettings, status: DefaultSensorStatus) -> SensorDefinition:
    followed = {spec.key: followed_by(spec, settings) for spec in specs}

    @sensor(
        name="sweeper",
        asset_selection=AssetSelection.all(),
        minimum_interval_seconds=settings.sweep_seconds,
        default_status=status,
    )
    def sweeper(context: SensorEvaluationContext) -> SensorResult | SkipReason:
        """Refreshes what was made from other contents than there are now, and is not being refreshed.

        Each such state is tried once: what fails waits for other contents, or for a person.
        """
        assert context.repository_def is not None
        left_behind = found_left_behind(context.instance, followed, context.repository_def.asset_graph)
        requests = [
            RunRequest(run_key=state, asset_selection=[key], tags={STARTED_BY: "sweeper"})
            for key, state in sorted(left_behind.items())
        ]
        return SensorResult(requests) if requests else SkipReason("nothing was left behind")

    return sweeper


def found_left_behind(
    instance: DagsterInstance, followed: Mapping[AssetKey, set[AssetKey]], graph: BaseAssetGraph[Any]
) -> dict[AssetKey, str]:
    """Assets whose last run read other contents than those they follow have now, and a name for that state.

    Without those that are under way or wait for something that is, whose upstreams failed a blocking check, or that
    were never made. Of a chain, only the first: the conditions carry on from there.
    """
    versions = {key: _made(instance, key) for key in followed}
    behind: dict[AssetKey, str] = {}
    for key, upstreams in followed.items():
        made = versions[key]
        if made is None:
            continue
        now = {upstream: _version(versions.get(upstream)) for upstream in upstreams}
        seen = {upstream: made.get(get_input_data_version_tag(upstream)) for upstream in upstreams}
        if any(version is not None and version != seen[upstream] for upstream, version in now.items()):
            behind[key] = content_id(
                key.to_user_string(), *(f"{upstream.to_user_string()} {now[upstream]}" for upstream in sorted(now))
            )
    if not behind:
        return {}
    under_way = assets_under_way(instance, followed)
    upstreams = {key for keys in followed.values() for key in keys}
    failed = {check.asset_key for check in failed_blocking_checks(instance, graph, upstreams)}
    waits_for = under_way | set(behind) | failed
    return {
        key: state for key, state in behind.items() if key not in under_way and not _upstream(key, followed) & waits_for
    }


def assets_under_way(instance: DagsterInstance, keys: Iterable[AssetKey]) -> set[AssetKey]:
    """Those of the assets that an unfinished run is going to make or is making."""
    wanted = set(keys)
    found: set[AssetKey] = set()
    for run in instance.get_runs(RunsFilter(statuses=UNDER_WAY)):
        found |= wanted if run.asset_selection is None else wanted & run.asset_selection
    return found


def _made(instance: DagsterInstance, key: AssetKey) -> Mapping[str, str] | None:
    """The tags of an asset's last materialization: its data version, and those that it read."""
    event = instance.get_latest_materialization_event(key)
    materialization = event.asset_materialization if event is not None else None
    return None if materialization is None else dict(materialization.tags or {})


def _version(tags: Mapping[str, str] | None) -> str | None:
    return None if tags is None else tags.get(DATA_VERSION_TAG)


def _upstream(key: AssetKey, followed: Mapping[AssetKey, set[AssetKey]]) -> set[AssetKey]:
    """Everything that an asset follows, directly or not."""
    found: set[AssetKey] = set()
    new = set(followed[key])
    while new:
        found |= new
        new = {above for one in new for above in followed.get(one, ())} - found
    return found
