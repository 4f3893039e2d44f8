"""Training by Ray Train without Ray: what is refused, how workers are started, and what errors mean."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ml.fine_tuning import TrainingJob, TrainingSettings
from resources.compute_settings import LocalComputeSettings, RayComputeSettings, RayTrainingSettings
from resources.doctor.launch import processes_of
from resources.doctor.machine import ThisMachine
from resources.doctor.training import check_training
from resources.ray_training import TrainingPlan, _of_accelerate
from resources.ray_training_worker import Relay, Unfit, WorkersTask, comes_from_lost_company, raise_if_unfit
from resources.ray_worker import project_code
from resources.settings import TrainerSettings, load_profile
from resources.trainer import TrlTrainer, build_trainer

ON_RAY: dict[str, Any] = {"launcher": "ray", "accelerate": "ddp"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"launcher": "slurm"}, "launcher"),
        ({"launcher": "ray"}, r"accelerate: none is one process, and ray.workers = 2: choose ddp"),
        ({**ON_RAY, "processes": 2}, r"processes = 2 is of launcher: accelerate; with ray it is ray.workers"),
        ({**ON_RAY, "launch": ["--gpu_ids", "4"]}, "launch is of launcher: accelerate"),
        ({"launcher": "ray", "accelerate": "fsdp"}, r"fsdp splits the model over GPUs: set ray.gpus_per_worker to 1"),
        ({**ON_RAY, "ray": {"workers": 0}}, r"ray\.workers"),
        ({**ON_RAY, "ray": {"gpus_per_worker": 2}}, r"ray\.gpus_per_worker"),
        ({**ON_RAY, "ray": {"max_failures": -1}}, r"ray\.max_failures"),
        ({**ON_RAY, "ray": {"address": "ray://head:10001"}}, r"ray:// \(Ray Client\) is not supported"),
        ({**ON_RAY, "ray": {"environment": {"env_vars": {"HF_TOKEN": "x"}}}}, "HF_TOKEN looks like a key"),
        ({**ON_RAY, "ray": {"batches_in_flight": 2}}, "batches_in_flight"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrainerSettings.model_validate(settings)


def test_one_worker_needs_no_way_to_share() -> None:
    assert TrainerSettings.model_validate({"launcher": "ray", "ray": {"workers": 1}}).accelerate == "none"


def test_the_cluster_is_compute_s_unless_training_has_its_own() -> None:
    compute = RayComputeSettings(address="head:6379", node_address="10.0.0.2", workers=9)
    own = RayTrainingSettings(address="other:6379")
    assert own.on_cluster_of(compute) == own
    taken = RayTrainingSettings(workers=4).on_cluster_of(compute)
    assert (taken.address, taken.node_address, taken.workers) == ("head:6379", "10.0.0.2", 4)
    assert RayTrainingSettings().on_cluster_of(LocalComputeSettings()).address is None


def a_job(folder: Path, **changes: Any) -> TrainingJob:
    job = {"base_model": "tiny", "data": folder / "data", "work": folder / "work", "output": folder / "output"}
    return TrainingJob.model_validate({**job, "sft": TrainingSettings(learning_rate=0.1), **changes})


def plan_of(folder: Path, trainer: TrlTrainer) -> TrainingPlan:
    file = folder / "job.json"
    file.write_text(a_job(folder).model_dump_json())
    command = trainer._command("sft", file)
    assert command[1:3] == ["-m", "resources.ray_training"]
    return TrainingPlan.model_validate_json(Path(command[3]).read_text())


def test_the_driver_is_told_everything(tmp_path: Path) -> None:
    settings = TrainerSettings.model_validate({**ON_RAY, "ray": {"workers": 4}})
    plan = plan_of(tmp_path, build_trainer(settings, RayComputeSettings(address="head:6379")))
    assert (plan.method, plan.job, plan.launch) == ("sft", a_job(tmp_path), None)
    assert (plan.ray.address, plan.ray.workers) == ("head:6379", 4)
    assert plan.environment["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert _of_accelerate(plan.launch) == {}


def test_a_model_in_pieces_is_split_over_ray_s_workers_as_over_accelerate_s(tmp_path: Path) -> None:
    settings = {"launcher": "ray", "accelerate": "fsdp", "ray": {"workers": 8, "gpus_per_worker": 1}}
    trainer = build_trainer(TrainerSettings.model_validate(settings))
    environment = _of_accelerate(plan_of(tmp_path, trainer).launch)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert (environment["FSDP_VERSION"], environment["FSDP_STATE_DICT_TYPE"]) == ("2", "SHARDED_STATE_DICT")
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert not environment.keys() & {"RANK", "WORLD_SIZE", "MASTER_ADDR", "PATH"}
    assert trainer._with_own_states(a_job(tmp_path)).work == tmp_path / "work" / "fsdp-8"


def test_zero3_is_told_in_accelerate_s_words(tmp_path: Path) -> None:
    settings = {"launcher": "ray", "accelerate": "zero3", "ray": {"workers": 8, "gpus_per_worker": 1}}
    plan = plan_of(tmp_path, build_trainer(TrainerSettings.model_validate(settings)))
    environment = _of_accelerate(plan.launch)
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "3"


def a_task(folder: Path, **changes: Any) -> WorkersTask:
    task = {"method": "sft", "job": a_job(folder), "environment": {}, "code": project_code(), "probes": {}}
    return WorkersTask.model_validate({**task, **changes})


def test_a_worker_that_could_not_do_the_same_is_refused(tmp_path: Path) -> None:
    seen = tmp_path / ".seen"
    seen.write_text("here")
    raise_if_unfit(a_task(tmp_path, probes={str(seen): "here"}))
    with pytest.raises(Unfit, match="other source code of the project"):
        raise_if_unfit(a_task(tmp_path, code="another"))
    with pytest.raises(
        Unfit, match=r"another folder than here\. A training on Ray needs a VPO_HOME that all nodes share"
    ):
        raise_if_unfit(a_task(tmp_path, probes={str(seen): "there"}))
    with pytest.raises(Unfit, match="does not have the file"):
        raise_if_unfit(a_task(tmp_path, probes={str(tmp_path / "no" / ".seen"): "there"}))
    with pytest.raises(Unfit, match=r"does not have .*/no-model, the model to train"):
        raise_if_unfit(a_task(tmp_path, job=a_job(tmp_path, base_model=str(tmp_path / "no-model"))))


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[/gloo/transport/tcp/pair.cc:537] Connection closed by peer [127.0.0.3]:4711"), True),
        (RuntimeError("NCCL communicator was aborted on rank 0"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("batch_size 3 is no multiple of the 2 devices that share it"), False),
        (ConnectionError("connection refused by the hub"), False),
    ],
)
def test_a_neighbour_that_went_away_is_told_from_what_is_wrong_here(error: Exception, lost: bool) -> None:
    assert comes_from_lost_company(error) is lost


def test_what_workers_say_is_taken_once_and_in_order() -> None:
    relay = Relay()
    relay.say("figures", {"step": 1})
    relay.say("begun", None)
    assert relay.taken() == [("figures", {"step": 1}), ("begun", None)]
    assert relay.taken() == []
    assert not relay.end_is_asked()
    relay.ask_to_end()
    assert relay.end_is_asked()


def test_the_doctor_counts_ray_s_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPO_TRAINER", json.dumps({**ON_RAY, "ray": {"workers": 3}}))
    profile = load_profile()
    assert processes_of(profile, ThisMachine()) == 3
    texts = [finding.text for finding in check_training(profile, ThisMachine())]
    assert any("no multiple of the 3 devices" in text for text in texts)
