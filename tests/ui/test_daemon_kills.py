"""Kills under a real daemon: what it had started is started again, and goes on where it was."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import pytest
from dagster import DagsterInstance, DagsterRunStatus

from storage.lake import Lake
from storage.tables import DRAFTS
from tests.ui.serving import Served, serving
from tests.ui.test_daemon import wait_for
from vpo_assets.instance import process_of

pytestmark = pytest.mark.long
QUERIES = 50
SETTINGS = {"VPO_AUTOMATION__RUNNING": "false", "VPO_REFRESH__TEXT_BATCH": "1"}
LAUNCH = """
mutation($parameters: ExecutionParams!) {
  launchPipelineExecution(executionParams: $parameters) { __typename ... on LaunchRunSuccess { run { runId } } }
}
"""


def launch(served: Served, *assets: str) -> str:
    """Start a run of these assets as the UI does; its id."""
    parameters = {
        "selector": {
            "repositoryLocationName": "vpo",
            "repositoryName": "__repository__",
            "jobName": "__ASSET_JOB",
            "assetSelection": [{"path": [asset]} for asset in assets],
        },
        "runConfigData": "{}",
    }
    body = json.dumps({"query": LAUNCH, "variables": {"parameters": parameters}}).encode()
    request = Request(f"{served.address}/graphql", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        said = json.load(answer)
    return str(said["data"]["launchPipelineExecution"]["run"]["runId"])


def made_by(served: Served) -> dict[str, int]:
    """How many drafts each run has made, in the order of time; none twice."""
    with Lake(served.home / "lake") as lake:
        if not lake.exists(DRAFTS):
            return {}
        rows = lake.query(
            f"SELECT run_id, count(*) AS n, count(DISTINCT input_id) AS inputs FROM {DRAFTS.qualified} "
            "GROUP BY run_id ORDER BY min(made_at)"
        ).to_pylist()
        assert (
            lake.query(f"SELECT 1 AS twice FROM {DRAFTS.qualified} GROUP BY input_id HAVING count(*) > 1").num_rows == 0
        )
    return {row["run_id"]: row["n"] for row in rows}


def kill_run(instance: DagsterInstance, run_id: str) -> None:
    """The process of one run, as the kernel does when memory is short."""
    run = instance.get_run_by_id(run_id)
    assert run is not None
    process = process_of(instance, run)
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)


def kill_all(served: Served) -> None:
    """Daemon, webserver, code server and runs at once, as when the power goes."""
    top = psutil.Process(served.pid)
    for process in [top, *top.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def test_killed_runs_of_the_daemon_are_started_again_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home" / "dagster"))
    with serving(tmp_path, QUERIES, **SETTINGS) as served, DagsterInstance.get() as instance:
        first = launch(served, "raw_prompts", "queries", "drafts")
        wait_for(lambda: made_by(served).get(first, 0) >= 2, "two drafts")
        kill_run(instance, first)
        wait_for(lambda: len(made_by(served)) == 2, "a draft by the run that takes the killed one's place")
        assert status(instance, first) is DagsterRunStatus.FAILURE
        second = list(made_by(served))[1]
        kill_all(served)
        assert status(instance, second) is DagsterRunStatus.STARTED, "nobody was left to say that it had died"
    before = made_by(served)
    with serving(tmp_path, QUERIES, **SETTINGS) as served, DagsterInstance.get() as instance:
        wait_for(lambda: len(made_by(served)) == 3, "a draft by the run that the daemon starts after its own end")
        third = list(made_by(served))[2]
        wait_for(lambda: status(instance, third) is DagsterRunStatus.SUCCESS, "the end of that run")
        assert status(instance, second) is DagsterRunStatus.FAILURE
    after = made_by(served)
    assert {run: after[run] for run in before} == before
    assert after[third] > 0


def status(instance: DagsterInstance, run_id: str) -> DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status
