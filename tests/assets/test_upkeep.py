"""Runs whose process is gone, and a pool without a limit, as a daemon's sensor finds them."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from dagster import DagsterInstance, DagsterRunStatus, build_sensor_context, job, op
from dagster._core.events import EngineEventData
from dagster._core.test_utils import instance_for_test

from vpo_assets.instance import pool_fault, provision_pool
from vpo_assets.table_assets import GPU_POOL
from vpo_assets.upkeep import dead_runs


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with instance_for_test() as instance:
        yield instance


@op
def nothing() -> None:
    """Nothing."""


@job
def some_job() -> None:
    nothing()


def started(instance: DagsterInstance, pid: int, host: str | None = None) -> str:
    """The id of a run that this process is said to be working on."""
    run = instance.create_run_for_job(some_job, status=DagsterRunStatus.STARTED)
    said = {"pid": str(pid), **({"host": host} if host else {})}
    instance.report_engine_event(f"Started process for run (pid: {pid}).", run, EngineEventData(said))
    return run.run_id


@pytest.fixture
def gone() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_dead_runs_slot_is_freed_and_a_living_run_left_alone(instance: DagsterInstance, gone: int) -> None:
    provision_pool(instance)
    dead, living = started(instance, gone), started(instance, os.getpid())
    storage = instance.event_log_storage
    assert storage.claim_concurrency_slot(GPU_POOL, dead, "step").is_claimed
    found = dead_runs(build_sensor_context(instance))
    assert found.skip_message == f"cleared {dead}"
    assert instance.get_run_by_id(dead).status is DagsterRunStatus.FAILURE  # type: ignore[union-attr]
    assert instance.get_run_by_id(living).status is DagsterRunStatus.STARTED  # type: ignore[union-attr]
    assert storage.get_concurrency_info(GPU_POOL).active_slot_count == 0
    assert dead_runs(build_sensor_context(instance)).skip_message == "no dead runs"


def test_processes_of_other_machines_are_not_looked_for_on_this_one(
    instance: DagsterInstance, gone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere, unsaid = (started(instance, gone, host) for host in (socket.gethostname(), "elsewhere", None))
    monkeypatch.setattr("vpo_assets.instance.SqliteRunStorage", type("Postgres", (), {}))
    assert dead_runs(build_sensor_context(instance)).skip_message == f"cleared {here}"
    of = {run: instance.get_run_by_id(run).status for run in (here, elsewhere, unsaid)}  # type: ignore[union-attr]
    assert of == {
        here: DagsterRunStatus.FAILURE,
        elsewhere: DagsterRunStatus.STARTED,
        unsaid: DagsterRunStatus.STARTED,
    }


def test_a_pool_that_keeps_no_limit_is_said(instance: DagsterInstance) -> None:
    assert "the pool gpu has no limit" in str(pool_fault(instance))
    assert "the pool gpu has no limit" in str(dead_runs(build_sensor_context(instance)).skip_message)
    instance.event_log_storage.set_concurrency_slots(GPU_POOL, 0)
    assert "the pool gpu has no slot" in str(pool_fault(instance))
    instance.event_log_storage.set_concurrency_slots(GPU_POOL, 1)
    assert pool_fault(instance) is None
