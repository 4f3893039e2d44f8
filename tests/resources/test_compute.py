"""Where the batches of a stage go, and what a worker says before it works; without Ray."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import yaml

from resources.backend_settings import (
    BudgetSettings,
    DiffusersSettings,
    EndpointModelSettings,
    LlmJudgeSettings,
    PixelRewardSettings,
    RulesJudgeSettings,
    Section,
    TransformersModelSettings,
    VllmModelSettings,
)
from resources.compute import build_mapper
from resources.compute_settings import LocalComputeSettings, RayComputeSettings
from resources.doctor.compute import check_compute
from resources.doctor.findings import Level
from resources.doctor.machine import Gpu
from resources.outcome import Unavailable
from resources.ray_cluster import connect, in_words
from resources.ray_compute import RayMapper, death_in_words, raise_if_unfit
from resources.ray_worker import Probe, Worker, WorkerReport, project_code, that_travels
from resources.settings import PROFILES, SettingsError, load_profile
from storage.refresh import BatchResult, StopRefresh, map_here


def endpoint(**changes: Any) -> EndpointModelSettings:
    return EndpointModelSettings(base_url="http://127.0.0.1:9/v1", model="judge", **changes)


def gpus(settings: RayComputeSettings, *backends: Section) -> float:
    mapper = build_mapper(settings, "prompts", backends, Path("/nowhere"))
    assert isinstance(mapper, RayMapper)
    return mapper.settings.gpus_per_worker


def test_local_works_here() -> None:
    assert build_mapper(LocalComputeSettings(), "videos", [PixelRewardSettings()], Path("/nowhere")) is map_here


def test_only_stages_that_load_a_model_hold_gpus() -> None:
    settings = RayComputeSettings(gpus_per_worker=0.5)
    assert gpus(settings, TransformersModelSettings()) == 0.5
    assert gpus(settings, DiffusersSettings(model="embedded")) == 0.5
    assert gpus(settings, endpoint(), VllmModelSettings()) == 0.5
    assert gpus(settings, LlmJudgeSettings(language_model=VllmModelSettings())) == 0.5
    assert gpus(settings, RulesJudgeSettings()) == 0
    assert gpus(settings, LlmJudgeSettings(language_model=endpoint())) == 0
    assert gpus(settings, PixelRewardSettings()) == 0


def test_a_model_that_is_spread_over_gpus_holds_them_all() -> None:
    assert gpus(RayComputeSettings(gpus_per_worker=1), VllmModelSettings(tensor_parallel_size=4)) == 4
    assert gpus(RayComputeSettings(), VllmModelSettings()) == 0


@pytest.mark.parametrize("budget", [{"tokens": 5}, {"money": 1.0, "price_per_million_prompt_tokens": 1.0}])
def test_money_is_counted_in_one_process(budget: dict[str, Any]) -> None:
    judge = LlmJudgeSettings(language_model=endpoint(budget=BudgetSettings(**budget)))
    assert build_mapper(RayComputeSettings(), "critiques", [judge], Path("/nowhere")) is map_here


def test_a_stage_may_have_figures_of_its_own() -> None:
    settings = RayComputeSettings(
        workers=8, gpus_per_worker=1, stages={"rewards": {"workers": 2, "memory_gb_per_worker": 3}}
    )
    assert settings.of_stage("videos").workers == 8
    own = settings.of_stage("rewards")
    assert (own.workers, own.gpus_per_worker, own.memory_gb_per_worker) == (2, 1, 3)


@pytest.mark.parametrize(
    ("compute", "line"),
    [
        ({"backend": "slurm"}, "compute.backend = 'slurm': must be 'local' or 'ray'"),
        ({"backend": "local", "workers": 2}, "compute.workers is no setting"),
        ({"backend": "ray", "workers": 0}, "compute.workers = '0': must be greater than or equal to 1"),
        ({"backend": "ray", "gpus_per_worker": 1.5}, "compute.gpus_per_worker = '1.5': must be a fraction of one GPU"),
        (
            {"backend": "ray", "address": "ray://head:10001"},
            "compute.address = 'ray://head:10001': ray:// (Ray Client)",
        ),
        ({"backend": "ray", "address": "head"}, "compute.address = 'head': must be host:port"),
        ({"backend": "ray", "stages": {"training": {"workers": 2}}}, "compute.stages.training"),
        ({"backend": "ray", "stages": {"videos": {"worker": 2}}}, "compute.stages.videos.worker is no setting"),
        (
            {"backend": "ray", "environment": {"env_vars": {"OPENAI_API_KEY": "sk-1"}}},
            "OPENAI_API_KEY looks like a key",
        ),
    ],
)
def test_wrong_settings_are_refused_by_name(compute: dict[str, Any], line: str, tmp_path: Path) -> None:
    file = tmp_path / "profile.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load((PROFILES / "local.yaml").read_text()) | {"compute": compute}))
    with pytest.raises(SettingsError) as error:
        load_profile(str(file))
    assert line in str(error.value)
    assert "sk-1" not in str(error.value)


def test_the_environment_chooses_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPO_COMPUTE__BACKEND", "ray")
    monkeypatch.setenv("VPO_COMPUTE__WORKERS", "5")
    compute = load_profile("local").compute
    assert isinstance(compute, RayComputeSettings) and compute.workers == 5


# ---- what a worker says ----------------------------------------------------------------------------------------------


class Picky(StopRefresh):
    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Wordless(ValueError):
    """Travels, but would say something else on arrival."""

    def __init__(self, text: str = "nothing") -> None:
        super().__init__(text)

    def __reduce__(self) -> tuple[type["Wordless"], tuple[()]]:
        return type(self), ()


def test_exceptions_travel_as_themselves_where_they_can() -> None:
    error = Unavailable("the server is gone")
    assert that_travels(error) is error
    stopped = that_travels(Picky("the budget is spent", 7))
    assert type(stopped) is StopRefresh and str(stopped) == "the budget is spent"
    other = that_travels(Wordless("7 is too many"))
    assert type(other) is RuntimeError and str(other) == "Wordless: 7 is too many"


def ten_times(batch: pa.Table) -> BatchResult:
    return BatchResult(batch)


def test_a_worker_reports_and_works(tmp_path: Path) -> None:
    import pickle

    probe = Probe(tmp_path / "probe", "here")
    probe.file.write_text("here")
    worker = Worker(pickle.dumps(ten_times))
    report = worker.report(probe)
    assert (report.fault, report.store, report.code, report.pid) == (None, None, project_code(), os.getpid())
    raise_if_unfit(report)
    batch = pa.table({"input_id": ["1"]})
    result = worker.work(batch).result
    assert result is not None and result.rows.equals(batch)


def test_an_unfit_worker_is_named_with_what_to_do(tmp_path: Path) -> None:
    import pickle

    worker = Worker(pickle.dumps(ten_times).replace(b"ten_times", b"no_such_f"))
    missing = worker.report(Probe(tmp_path / "probe", "here"))
    with pytest.raises(Unavailable, match=r"cannot load the work: AttributeError.*must be installed on every node"):
        raise_if_unfit(missing)
    elsewhere = Worker(pickle.dumps(ten_times)).report(Probe(tmp_path / "probe", "here"))
    with pytest.raises(Unavailable, match=r"does not see the same store: .*VPO_HOME"):
        raise_if_unfit(elsewhere)
    (tmp_path / "probe").write_text("there")
    other = Worker(pickle.dumps(ten_times)).report(Probe(tmp_path / "probe", "here"))
    with pytest.raises(Unavailable, match="another folder"):
        raise_if_unfit(other)
    with pytest.raises(Unavailable, match="on node-7 runs other source code"):
        raise_if_unfit(WorkerReport("node-7", 1, "other", None, None))


# ---- why it does not work --------------------------------------------------------------------------------------------


@pytest.fixture
def installed_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Ray were installed. It is not imported: it reads its token then, and once for a process."""
    monkeypatch.setattr("resources.ray_cluster.imported_ray", lambda *_: SimpleNamespace(is_initialized=lambda: False))


@pytest.mark.usefixtures("installed_ray")
def test_nobody_at_the_address() -> None:
    with pytest.raises(
        Unavailable, match=r"no Ray cluster answers at compute.address = 127\.0\.0\.9:6399.*ray start --head"
    ):
        connect(RayComputeSettings(address="127.0.0.9:6399"))


def test_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(
        Unavailable, match=r"compute.backend is ray, which is not installed.*pip install 'ray\[default\]"
    ):
        connect(RayComputeSettings())


def test_why_a_cluster_cannot_be_joined() -> None:
    settings = RayComputeSettings(address="head:6379")
    mismatch = RuntimeError(
        "Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.12.1\n"
        "This process on node 10.0.0.2 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
    )
    said = in_words(settings, "2.60.0", mismatch)
    assert "head:6379 runs Ray 2.59.0 and Python 3.12.1, this process Ray 2.60.0 and Python 3.1" in said
    said = in_words(settings, "2.60.0", ConnectionError("Failed to connect\nmore"))
    assert "cannot be joined: Failed to connect. Is this machine a node" in said and "\n" not in said
    said = in_words(RayComputeSettings(), "2.60.0", RuntimeError("no space"))
    assert said == "no Ray cluster could be started on this machine: no space"


def test_what_a_worker_died_of() -> None:
    error = type("OutOfMemoryError", (Exception,), {})(
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.3, ID: 8e0c) "
        "was 3.20GB used / 23.54GB limit (0.136036)\nOOM kill reason: ..."
    )
    assert death_in_words(error).startswith("out of memory (node 10.0.0.3, 3.20GB of 23.54GB used): take smaller")
    died = Exception(
        "The actor died unexpectedly before finishing this task.\n\tclass_name: Worker\nThe actor is dead "
        "because its worker process has died."
    )
    assert death_in_words(died) == "The actor is dead because its worker process has died."


# ---- vpo doctor ------------------------------------------------------------------------------------------------------


class Machine:
    """A machine with two GPUs, and Ray as the test says."""

    environment: Mapping[str, str] = {}

    def __init__(self, ray: str | None) -> None:
        self.ray = ray

    def gpus(self) -> list[Gpu]:
        return [Gpu("H100", 1, 1)] * 2

    def version(self, package: str) -> str | None:
        return self.ray

    def main_memory(self) -> int:
        return 1

    def free_disk(self, folder: Path) -> int:
        return 1


def doctor(compute: LocalComputeSettings | RayComputeSettings, ray: str | None = "2.60.0") -> list[tuple[Level, str]]:
    profile = load_profile("local").model_copy(update={"compute": compute})
    return [(finding.level, finding.text) for finding in check_compute(profile, Machine(ray))]


def test_the_doctor_says_nothing_about_local() -> None:
    assert doctor(LocalComputeSettings()) == []


@pytest.mark.usefixtures("installed_ray")
def test_the_doctor_says_what_is_missing() -> None:
    assert doctor(RayComputeSettings(), None) == [(Level.FAULT, "ray, which compute.backend needs, is not installed")]
    (level, text), *_ = doctor(RayComputeSettings(address="127.0.0.9:6399"))
    assert level is Level.FAULT and "no Ray cluster answers" in text


def test_the_doctor_counts_workers() -> None:
    fine = RayComputeSettings(workers=4, gpus_per_worker=0.5, cpus_per_worker=0)
    assert [level for level, _ in doctor(fine)] == [Level.OK]
    level, text = doctor(RayComputeSettings(workers=4, gpus_per_worker=1, cpus_per_worker=0))[-1]
    assert level is Level.WARNING and text == "2 of 4 workers (0 CPUs and 1 GPUs each) fit on the nodes there are"
    level, text = doctor(RayComputeSettings(gpus_per_worker=4))[-1]
    assert level is Level.WARNING and text == "no node has the 1 CPUs and 4 GPUs that one worker asks for"
