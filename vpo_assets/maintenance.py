"""Maintenance of a home: the lake, videos without rows, what broken-off trainings left; as a command and as a job.

Belongs here: what may go and what a checkpoint needs, and the Dagster job. Does not belong here: what is done to the
lake itself (storage/maintenance.py).
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from dagster import (
    DefaultScheduleStatus,
    MetadataValue,
    OpExecutionContext,
    ResourceParam,
    ScheduleDefinition,
    job,
    op,
)

from storage.checkpoints import BrokenCheckpoint, CheckpointStore, TrainingFile
from storage.lake import Lake
from storage.maintenance import LakeReport, Retention, maintain, size_of, values_in_use
from storage.tables import CHECKPOINTS
from vpo_assets.platform import Platform
from vpo_assets.training import TRAINING_FILE, forget_states, nobody_else

SECONDS_IN_HOUR = 3600.0
WEEKLY = "0 4 * * 0"


@dataclass(frozen=True)
class Report:
    """What maintenance did to a home (or would do): the lake's part, files and bytes of videos and trainings."""

    lake: LakeReport
    videos: int
    video_bytes: int
    unfinished_checkpoints: int
    training_states: int
    bytes_before: int
    bytes_after: int
    seconds: float

    def lines(self) -> list[str]:
        """In words, one fact a line."""
        lake = self.lake
        return [
            f"snapshots: {lake.expired:,} expired, {lake.kept:,} kept, {lake.spared:,} of them only for checkpoints",
            f"lake: {lake.files_removed:,} files removed, {lake.files_before:,} -> {lake.files_after:,} files, "
            f"{lake.bytes_before:,} -> {lake.bytes_after:,} bytes",
            f"bookkeeping: {lake.recipes:,} recipes and {lake.throughput:,} throughput rows removed",
            f"videos: {self.videos:,} without a row removed, {self.video_bytes:,} bytes",
            f"trainings: {self.unfinished_checkpoints:,} unfinished checkpoints and {self.training_states:,} old "
            "states removed",
            f"altogether: {self.bytes_before:,} -> {self.bytes_after:,} bytes in {self.seconds:.1f} s",
            *(f"not done: {problem}" for problem in lake.problems),
        ]


def maintain_home(platform: Platform, *, dry_run: bool = False, retention: Retention | None = None) -> Report:
    """Maintain the home of a platform, beside runs if need be. `dry_run`: say only what would be done. `retention`:
    other than the profile's."""
    started = time.monotonic()
    settings = platform.profile.storage
    retention = retention or Retention(settings.keep_days, settings.keep_snapshots_min, settings.grace_hours)
    lake, home = platform.lake, platform.home
    _, bytes_before = size_of(home)
    unfinished, states = _tidy_trainings(platform, retention, dry_run)
    seconds = retention.grace_hours * SECONDS_IN_HOUR
    unused = platform.videos.unreferenced(values_in_use(lake, "uri"), older_than_seconds=seconds)
    video_bytes = sum(size for _, size in unused)
    videos = len(unused) if dry_run else platform.videos.delete_files(unused, older_than_seconds=seconds)
    report = maintain(lake, retention, needed_snapshots(lake, platform.checkpoints, home), dry_run=dry_run)
    _, bytes_after = size_of(home)
    took = time.monotonic() - started
    return Report(report, videos, video_bytes, unfinished, states, bytes_before, bytes_after, took)


def needed_snapshots(lake: Lake, store: CheckpointStore, home: Path) -> set[int]:
    """Snapshots that a checkpoint was trained on, or is being trained on now."""
    rows = lake.query(f"SELECT checkpoint_id, snapshots FROM {CHECKPOINTS.qualified}").to_pylist()
    recorded = {row["checkpoint_id"]: json.loads(row["snapshots"] or "{}") for row in rows}
    needed: set[int] = set()
    for name in store.ids():
        try:
            inputs = store.manifest(name).inputs if store.remote else store.load(name, verify=False)[1].inputs
        except BrokenCheckpoint:  # it may be mended from a copy yet
            inputs = _readable_inputs(store, name) or recorded.get(name, {})
        except ValueError:  # no checkpoint's name
            continue
        needed |= {int(snapshot) for snapshot in inputs.values()}
    return needed | set(_being_trained_on(home))


def _readable_inputs(store: CheckpointStore, checkpoint_id: str) -> dict[str, int]:
    try:
        return store.manifest(checkpoint_id).inputs
    except BrokenCheckpoint:
        return {}


def _being_trained_on(home: Path) -> Iterator[int]:
    for file in home.glob(f"training/*/{TRAINING_FILE}"):
        try:
            yield TrainingFile.model_validate_json(file.read_bytes()).snapshot
        except (OSError, ValueError):  # just being written or removed
            continue


def _tidy_trainings(platform: Platform, retention: Retention, dry_run: bool) -> tuple[int, int]:
    """Unfinished checkpoints that nobody works on, and states to resume from of checkpoints that are done."""
    age = retention.grace_hours * SECONDS_IN_HOUR
    unfinished = states = 0
    for folder, checkpoint_id in platform.checkpoints.unfinished(older_than_seconds=age):
        with nobody_else(platform.home / "training" / checkpoint_id) as free:
            if free:
                unfinished += 1
                if not dry_run:
                    platform.checkpoints.remove_unfinished(folder)
    for work in platform.home.glob("training/*/states"):
        with nobody_else(work.parent) as free:
            if free and platform.checkpoints.exists(work.parent.name):
                states += forget_states(work, dry_run=dry_run)
    return unfinished, states


@op(name="maintain_home", tags={"dagster/priority": "-1"})
def _maintain(context: OpExecutionContext, platform: ResourceParam[Platform]) -> None:
    report = maintain_home(platform)
    for line in report.lines():
        context.log.info(line)
    context.add_output_metadata({"report": MetadataValue.json(asdict(report))})


@job(name="maintenance", description="Retention and clean-up; never what a checkpoint needs (docs/operations.md).")
def maintenance_job() -> None:
    """Expire old snapshots, merge files, remove what nobody needs."""
    _maintain()


maintenance_schedule = ScheduleDefinition(
    name="weekly_maintenance",
    job=maintenance_job,
    cron_schedule=WEEKLY,
    default_status=DefaultScheduleStatus.STOPPED,
    description="Sundays at four, UTC; switched off until somebody switches it on.",
)
