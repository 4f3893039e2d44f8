"""The Dagster instance: where runs are recorded, and what must hold before one is started.

Belongs here: the folder and configuration of the instance, the pool that keeps GPU work one at a time, and the
clearing away of runs whose process is gone. Does not belong here: starting runs (running.py).
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dagster import DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.events import EngineEventData
from dagster._core.storage.runs import SqliteRunStorage

from resources.settings import Profile, RunsSettings
from resources.shared_storage import SQLITE
from vpo_assets.table_assets import GPU_POOL

GPU_SLOTS = 1

# Paths are left to DAGSTER_HOME, so that the folder may be moved.
_HERE = """\
  sqlite:
    base_dir:
      env: DAGSTER_HOME
"""
# Without a password: libpq takes it from PGPASSWORD, or from ~/.pgpass.
_IN_POSTGRES = """\
  postgres:
    postgres_url: {address}
"""
_CONFIGURATION = """\
# Written once; yours to change. See https://docs.dagster.io/deployment/oss/oss-instance-configuration
storage:
{storage}concurrency:
  pools:
    # Each step that uses the pool `gpu` waits for a slot, whoever started its run. A pool without a limit has none.
    granularity: op
# What steps print is kept in files, which the UI shows; no process beside a run repeats it on the terminal.
compute_logs:
  module: vpo_assets.compute_logs
  class: FileComputeLogs
run_monitoring:
  enabled: true
  free_slots_after_run_end_seconds: 30
{monitoring}# A run whose process is gone is started again, and does what is missing. One that failed by itself is not.
run_retries:
  enabled: true
  max_retries: 3
  retry_on_asset_or_op_failure: false
telemetry:
  enabled: false
# No invitation to a mailing list at the first start.
nux:
  enabled: false
{launcher}"""
# Runs are jobs of the cluster. A run whose job is gone goes on in another one: what is done is found done. No keys: Ray
# writes down what it is given here. They come from the environment of `ray start`.
_ON_RAY = """\
run_launcher:
  module: dagster_ray
  class: RayRunLauncher
  config:
    ray:
      address: {address}
      num_cpus: {cpus}
      env_vars: [DAGSTER_HOME, VPO_HOME, VPO_PROFILE]
"""
_RESUMED = """\
  max_resume_run_attempts: {resumes}
  poll_interval_seconds: 30
"""


class PoolNotProvisioned(RuntimeError):
    """The instance does not keep the limit of a pool; runs would load several models at once."""


def dagster_home(profile: Profile) -> Path:
    """The instance's folder, under the profile's home, with its configuration. One that somebody has changed is left as
    it is."""
    folder = profile.home / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "dagster.yaml"
    wanted = _configuration(profile.run_storage, profile.runs)
    ours = {_configuration(SQLITE), _configuration(profile.run_storage)}  # what is left of less is ours as well
    if not configuration.exists() or configuration.read_text(encoding="utf-8") in ours - {wanted}:
        unfinished = folder / f"dagster.yaml.{os.getpid()}"
        unfinished.write_text(wanted, encoding="utf-8")
        unfinished.replace(configuration)
    return folder


def _configuration(run_storage: str, runs: RunsSettings | None = None) -> str:
    on_ray = {"launcher": "", "monitoring": ""}
    if runs is not None and runs.launcher == "ray":
        on_ray["launcher"] = _ON_RAY.format(address=json.dumps(runs.address), cpus=runs.cpus)
        on_ray["monitoring"] = _RESUMED.format(resumes=runs.resumes)
    if run_storage == SQLITE:
        return _CONFIGURATION.format(storage=_HERE, **on_ray)
    # The driver that dagster-postgres brings; SQLAlchemy would look for its successor.
    address = f"postgresql+psycopg2://{run_storage.partition('://')[2]}"
    return _CONFIGURATION.format(storage=_IN_POSTGRES.format(address=json.dumps(address)), **on_ray)


@contextmanager
def prepared_instance(profile: Profile) -> Iterator[DagsterInstance]:
    """The instance, ready for runs: `DAGSTER_HOME` set, the `gpu` pool limited, dead runs cleared away.

    Raises PoolNotProvisioned.
    """
    os.environ["DAGSTER_HOME"] = str(dagster_home(profile))
    with DagsterInstance.get() as instance:
        provision_pool(instance)
        clear_dead_runs(instance)
        yield instance


def provision_pool(instance: DagsterInstance) -> None:
    """Give the pool its limit unless it has one, and make sure that it is kept. Raises PoolNotProvisioned."""
    storage = instance.event_log_storage
    if storage.supports_global_concurrency_limits and GPU_POOL not in storage.get_concurrency_keys():
        storage.set_concurrency_slots(GPU_POOL, GPU_SLOTS)
    if fault := pool_fault(instance):
        raise PoolNotProvisioned(fault)


def pool_fault(instance: DagsterInstance) -> str | None:
    """What is wrong with the pool that keeps models from being loaded side by side; None if it is in order."""
    storage = instance.event_log_storage
    remedy = f"set it with `dagster instance concurrency set {GPU_POOL} {GPU_SLOTS}`, or start by `vpo ui`"
    if not storage.supports_global_concurrency_limits:
        return f"this instance's storage knows no pools, so the pool {GPU_POOL} has no limit"
    if GPU_POOL not in storage.get_concurrency_keys():
        return f"the pool {GPU_POOL} has no limit, so several models may be loaded at once: {remedy}"
    if storage.get_concurrency_info(GPU_POOL).slot_count < 1:
        return f"the pool {GPU_POOL} has no slot, so no model can ever run: {remedy}"
    return None


def clear_dead_runs(instance: DagsterInstance) -> list[str]:
    """Mark runs as failed whose process is gone (killed, or the machine went down), and free their slots in pools.

    Otherwise they would be shown as running for ever, and whoever needs their slots would wait for ever. Only runs
    that are known to be processes of this machine are looked at: where several machines share the instance, those that
    say so. Returns the ids of the runs cleared.
    """
    cleared = []
    own = isinstance(instance.run_storage, SqliteRunStorage)  # no other machine writes into that
    for run in instance.get_runs(RunsFilter(statuses=[DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING])):
        process = process_of(instance, run)
        if process is None or not (process.host == socket.gethostname() or (own and process.host is None)):
            continue
        if _is_alive(process.pid, process.seen_at):
            continue
        instance.report_run_failed(run, f"The run's process ({process.pid}) is gone: it was killed, or crashed.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        cleared.append(run.run_id)
    return cleared


@dataclass(frozen=True)
class RunProcess:
    """Where a run is: a process id, the time it was said, and on which machine, if that was said."""

    pid: int
    seen_at: float
    host: str | None


def process_of(instance: DagsterInstance, run: DagsterRun) -> RunProcess | None:
    """The process of a run, by the first event that names one."""
    for entry in instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT):
        if entry.dagster_event is not None:
            said = entry.dagster_event.engine_event_data.metadata
            pid, host = said.get("pid"), said.get("host")
            if pid is not None and str(pid.value).isdigit():
                return RunProcess(int(str(pid.value)), entry.timestamp, str(host.value) if host else None)
    return None


def this_process() -> EngineEventData:
    """What `process_of` reads: that a run is in this process of this machine."""
    return EngineEventData({"pid": str(os.getpid()), "host": socket.gethostname()})


def _is_alive(pid: int, seen_at: float) -> bool:
    """Whether the process that had this id at that time still runs; ids are given again to later processes."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = next(
            float(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime ")
        )
    except OSError:  # no /proc on this system: a process of that id is all that can be said
        return True
    state, started = status[0], boot + float(status[19]) / os.sysconf("SC_CLK_TCK")
    return state != "Z" and started <= seen_at + 5
