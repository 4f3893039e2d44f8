"""Maintenance of a whole home: smaller afterwards, and every checkpoint's training file still to be had."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from dagster import DagsterInstance, DefaultScheduleStatus
from filelock import FileLock
from typer.testing import CliRunner

from storage.maintenance import Retention
from storage.videos import Frames
from tests.assets.conftest import World, data_versions
from vpo_assets.command_line import app
from vpo_assets.maintenance import maintain_home, maintenance_job, maintenance_schedule, needed_snapshots
from vpo_assets.replay import Verdict, replay

pytestmark = pytest.mark.slow

NOW = Retention(keep_days=0, keep_snapshots_min=1, grace_hours=0)


def test_after_maintenance_checkpoints_replay_and_nothing_is_computed_again(world: World) -> None:
    platform = world.platform
    checkpoints = [manifest.id for manifest in platform.checkpoints.list()]
    needed = needed_snapshots(platform.lake, platform.checkpoints, platform.home)
    assert len(checkpoints) == len(needed) == 2
    stray = platform.videos.put(_clip(), 4.0)
    unneeded = min(needed) - 1
    assert platform.lake.has_snapshot(unneeded)
    dry = maintain_home(platform, dry_run=True, retention=NOW)
    assert dry.videos == 1 and platform.videos.path(stray.uri).exists() and platform.lake.has_snapshot(unneeded)

    done = maintain_home(platform, retention=NOW)
    assert done.lake.bytes_after < done.lake.bytes_before and done.lake.files_after < done.lake.files_before
    assert (done.videos, done.video_bytes) == (1, stray.bytes) and not platform.videos.path(stray.uri).exists()
    assert done.lake.problems == () and done.lake.spared == 2
    assert not platform.lake.has_snapshot(unneeded)
    assert all(platform.lake.has_snapshot(snapshot) for snapshot in needed)

    # Replay from the lake alone, in a new process's eyes.
    world.renew()
    for checkpoint in checkpoints:
        assert replay(world.platform, checkpoint).verdict is Verdict.SAME_BYTES
    assert len(data_versions(world.materialize())) == 18
    assert sum(world.platform.counts.values()) == 0


def _clip() -> Frames:
    return np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


def test_what_broken_off_trainings_left_goes_unless_one_is_under_way(world: World) -> None:
    platform = world.platform
    root, (one, two) = platform.checkpoints.root, [manifest.id for manifest in platform.checkpoints.list()]
    for name in (one, two):
        (root / f".unfinished-{name}-abc").mkdir()
        (platform.home / "training" / name / "states" / "checkpoint-5").mkdir(parents=True)
    busy = FileLock(platform.home / "training" / two / "lock")
    with busy:
        done = maintain_home(platform, retention=NOW)
    assert (done.unfinished_checkpoints, done.training_states) == (1, 1)
    assert [folder.name for folder in root.glob(".unfinished-*")] == [f".unfinished-{two}-abc"]
    young = maintain_home(platform, retention=Retention(grace_hours=1))
    assert young.unfinished_checkpoints == 0 and young.training_states == 1
    assert len(platform.checkpoints.list()) == 2
    old = time.time() - 7200
    os.utime(root / f".unfinished-{two}-abc", (old, old))
    assert maintain_home(platform, retention=Retention(grace_hours=1)).unfinished_checkpoints == 1


def test_a_checkpoint_with_a_broken_manifest_keeps_its_snapshot(world: World) -> None:
    platform = world.platform
    before = needed_snapshots(platform.lake, platform.checkpoints, platform.home)
    one, two = platform.checkpoints.list()
    (platform.checkpoints.path(one.id) / "manifest.json").write_text("{")
    (platform.checkpoints.path(two.id) / "model.safetensors").unlink()
    assert needed_snapshots(platform.lake, platform.checkpoints, platform.home) == before


def test_the_command_and_the_job(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VPO_PROFILE", str(world.file))
    said = CliRunner().invoke(app, ["maintain", "--dry-run"])
    assert said.exit_code == 0, said.output
    assert said.output.startswith("nothing is changed") and "0 expired" in said.output
    assert CliRunner().invoke(app, ["maintain"]).exit_code == 0
    assert maintenance_schedule.default_status is DefaultScheduleStatus.STOPPED
    with DagsterInstance.ephemeral() as instance:
        result = maintenance_job.execute_in_process(
            instance=instance,
            resources={"platform": world.platform},
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
    assert result.success
