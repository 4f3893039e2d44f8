"""A run that the UI starts as a job of a Ray cluster (dagster-ray's launcher)."""

import json
import os
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import pytest
import yaml

from resources.settings import RunsSettings, load_profile
from services.local_servers.postgres import LocalPostgres
from storage.tables import DRAFTS
from tests.assets.conftest import queries_of, write_queries
from tests.resources.ray_nodes import HEAD, Nodes
from tests.ui.serving import free_port, serving
from vpo_assets.instance import dagster_home
from vpo_assets.platform import Platform

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(find_spec("dagster_ray") is None, reason="dagster-ray is not installed (the extra `ray`)"),
]

PATIENCE = 240.0  # seconds
LAUNCH = """
mutation($assets: [AssetKeyInput!]!) {
  launchRun(executionParams: {selector: {repositoryLocationName: "vpo", repositoryName: "__repository__",
      pipelineName: "everything", assetSelection: $assets}, runConfigData: {}, mode: "default"}) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""
STATUS = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
EVENTS = """
query($id: ID!) { logsForRun(runId: $id) { ... on EventConnection { events { ... on MessageEvent { message } } } } }
"""
STEPS = "query($id: ID!) { runOrError(runId: $id) { ... on Run { stepStats { stepKey status } } } }"


def test_the_instance_is_told_of_the_cluster_and_one_that_was_changed_is_left_alone(tmp_path: Path) -> None:
    profile = load_profile().model_copy(update={"home": tmp_path})
    dagster_home(profile)
    on_ray = profile.model_copy(
        update={
            "run_storage": "postgresql://vpo@db/dagster",
            "runs": RunsSettings(launcher="ray", address="http://head:8265", cpus=2, resumes=5),
        }
    )
    configuration = yaml.safe_load((dagster_home(on_ray) / "dagster.yaml").read_text())
    assert configuration["run_launcher"]["class"] == "RayRunLauncher"
    assert configuration["run_launcher"]["config"]["ray"]["address"] == "http://head:8265"
    assert configuration["run_monitoring"]["max_resume_run_attempts"] == 5
    (tmp_path / "dagster" / "dagster.yaml").write_text("# mine\n")
    assert (dagster_home(on_ray) / "dagster.yaml").read_text() == "# mine\n"


@pytest.fixture
def job_server() -> Iterator[tuple[Nodes, str]]:
    """A cluster of one node, and the address of its job server."""
    port = free_port()
    nodes = Nodes(dashboard_port=port)
    before = dict(os.environ)
    os.environ.update(nodes.environment)
    try:
        yield nodes, f"http://{HEAD}:{port}"
    finally:
        nodes.close()
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.slow
@pytest.mark.long
def test_a_run_of_the_ui_is_a_job_of_the_cluster_and_goes_on_when_its_job_is_killed(
    postgres: LocalPostgres, tmp_path: Path, job_server: tuple[Nodes, str]
) -> None:
    _, server = job_server
    write_queries(tmp_path / "queries.jsonl", queries_of(12))
    profile = tmp_path / "profile.yaml"
    local = Path("resources/profiles/local.yaml").resolve()
    profile.write_text(
        yaml.safe_dump(
            {
                "extends": str(local),
                "queries": {"files": [str(tmp_path / "queries.jsonl")]},
                "run_storage": postgres.create_database("runs_on_ray"),
                "runs": {"launcher": "ray", "address": server},
            }
        )
    )
    with serving(tmp_path, 4, VPO_PROFILE=str(profile)) as served:
        run = _launched(served.address, "raw_prompts")
        _wait_for(served.address, run)
        assert _jobs(server) in ([(f"dagster-run-{run}", "SUCCEEDED")], [(f"dagster-run-{run}", "RUNNING")])

        run = _launched(served.address, "queries", "drafts")
        _wait_for_step(served.address, run, "drafts")
        for process in psutil.process_iter(["cmdline"]):
            if run in " ".join(process.info["cmdline"] or ()):
                process.kill()
        _wait_for(served.address, run)
        assert len([job for job, _ in _jobs(server) if run in job]) == 2
        lake = Platform(load_profile(str(profile)).model_copy(update={"home": served.home})).lake
        drafts = lake.query(f"SELECT count(*) AS n, count(DISTINCT input_id) AS ids FROM {DRAFTS.qualified}")
        assert drafts["n"].to_pylist() == drafts["ids"].to_pylist() != [0]


def _launched(address: str, *assets: str) -> str:
    launched = _asked(address, LAUNCH, assets=[{"path": [asset]} for asset in assets])["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    return str(launched["run"]["runId"])


def _wait_for(address: str, run: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while (status := _asked(address, STATUS, id=run)["runOrError"]["status"]) != "SUCCESS":
        assert status != "FAILURE" and time.monotonic() < deadline, "\n".join([status, *_messages(address, run)])
        time.sleep(1)


def _messages(address: str, run: str) -> list[str]:
    return [event["message"] for event in _asked(address, EVENTS, id=run)["logsForRun"]["events"]]


def _jobs(server: str) -> list[tuple[str, str]]:
    from ray.job_submission import JobSubmissionClient

    return [(str(job.submission_id), str(job.status)) for job in JobSubmissionClient(server).list_jobs()]


def _wait_for_step(address: str, run: str, step: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while {"stepKey": step, "status": "IN_PROGRESS"} not in _asked(address, STEPS, id=run)["runOrError"]["stepStats"]:
        assert time.monotonic() < deadline, f"{step} was not begun"
        time.sleep(0.5)


def _asked(address: str, query: str, **variables: Any) -> dict[str, Any]:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = Request(f"{address}/graphql", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    assert "errors" not in found, found
    return found["data"]  # type: ignore[no-any-return]
