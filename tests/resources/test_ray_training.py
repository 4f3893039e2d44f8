"""SFT and DPO by Ray Train on a real two-node cluster on this machine: the same model as without Ray, whoever dies."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from ml.fine_tuning import TrainingJob, last_state
from resources.doctor.findings import Level
from resources.doctor.machine import ThisMachine
from resources.doctor.needs import trained_key
from resources.doctor.training_cluster import check_training_cluster
from resources.doctor.weights import Weights
from resources.settings import TrainerSettings, load_profile
from resources.trainer import TrainingFailed, TrlTrainer
from tests.ml.test_fine_tuning import dpo_job, furthest_apart, loss_of, sft_job, trained
from tests.resources.ray_nodes import HEAD, Nodes, two_nodes
from tests.resources.test_ray_training_memory import SMALL
from tests.resources.test_trainer import is_gone
from tests.tiny_model import save_tiny_model

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed (the extra `ray`)"),
    pytest.mark.skipif(sys.platform != "linux", reason="nodes with addresses of their own on loopback"),
]

SETTINGS = {"epochs": 40, "save_every": 20, "micro_batch_size": 2, "learning_rate": 1e-3}
STEPS = 240
KILLED_AT = 50  # what is told of a step comes a little after it, and the training goes on meanwhile
SAME_LOSS = 1e-3
"""How far a step's loss may be from that of the same training elsewhere: the sums are in another order."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with two_nodes() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def on_ray(nodes: Nodes) -> Callable[..., TrlTrainer]:
    def make(**changes: Any) -> TrlTrainer:
        ray = {"address": nodes.address, "node_address": HEAD, "workers": 2, **changes}
        return TrlTrainer(TrainerSettings.model_validate({"launcher": "ray", "accelerate": "ddp", "ray": ray}))

    return make


def two_jobs(job: Any, folder: Path, base: Path) -> list[TrainingJob]:
    """The same training twice, in folders of its own each."""
    for name in ("here", "there"):
        (folder / name).mkdir()
    return [job(folder / name, base, **SETTINGS) for name in ("here", "there")]


def losses(figures: list[dict[str, float]]) -> dict[float, float]:
    """The last loss that was told of each step."""
    return {entry["step"]: entry["loss"] for entry in figures if "loss" in entry}


def went_on_at(figures: list[dict[str, float]]) -> float:
    """The first step after a new start. It must follow a state that was saved."""
    steps = [entry["step"] for entry in figures if "loss" in entry]
    (again,) = [after for before, after in pairwise(steps) if after != before + 1]
    assert steps[-1] == STEPS and (again - 1) % SETTINGS["save_every"] == 0, steps
    return again


def workers() -> list[psutil.Process]:
    """The processes of Ray Train's workers, the first rank first."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cmdline()[0].startswith("ray::") and "TrainWorker" in process.cmdline()[0]:
                found.append(process)
        except (psutil.Error, IndexError):
            continue
    return found


def test_the_doctor_asks_every_node(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = {"address": nodes.address, "node_address": HEAD, "workers": 5}
    monkeypatch.setenv("VPO_TRAINER", json.dumps({"launcher": "ray", "accelerate": "ddp", "ray": ray}))
    profile = load_profile().model_copy(update={"home": tmp_path})
    fine, room = check_training_cluster(profile, ThisMachine())
    assert (fine.level, room.level) == (Level.OK, Level.WARNING)
    assert f"all 2 nodes at {nodes.address} see the folders" in fine.text
    assert "4 of 5 workers" in room.text
    assert not list((tmp_path / "training").iterdir())
    monkeypatch.setenv("VPO_TRAINER", json.dumps({"launcher": "ray", "accelerate": "ddp", "ray": ray | {"workers": 4}}))
    shared = load_profile().model_copy(update={"home": tmp_path})
    memory = list(check_training_cluster(shared, ThisMachine(), {trained_key(shared): Weights({}, SMALL)}))[1:]
    assert [finding.subject for finding in memory] == ["sft", "targets.shapes.dpo"]
    assert all("main memory of the node 127.0.0." in finding.text for finding in memory)
    monkeypatch.setattr(Path, "write_text", lambda *_: 0)  # as if this machine's folder were none of theirs
    found = list(check_training_cluster(profile, ThisMachine()))
    blind = sorted(finding.text for finding in found if finding.level is Level.FAULT)
    for address, text in zip(nodes.addresses, blind, strict=True):
        assert text.startswith(f"the Ray node {address} does not see the same VPO_HOME: {tmp_path}/training there")


def test_two_workers_train_the_same_model_though_one_is_killed(
    tmp_path: Path, base: Path, on_ray: Callable[..., TrlTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    here, there = two_jobs(sft_job, tmp_path, base)
    expected, _ = trained("sft", here)
    killed: list[int] = []

    def kill(figures: dict[str, float]) -> None:
        if figures["step"] == KILLED_AT and not killed:
            killed.append(workers()[-1].pid)
            os.kill(killed[0], signal.SIGKILL)

    seen, report = trained("sft", there, kill, on_ray())
    assert killed and went_on_at(seen) > KILLED_AT - SETTINGS["save_every"]
    assert sorted(losses(seen)) == list(range(1, STEPS + 1))
    assert losses(seen) == pytest.approx(losses(expected), abs=SAME_LOSS)
    assert (report["examples"], report["too_long"], report["steps"]) == (24, 2, STEPS)
    assert len([entry for entry in report["curve"] if "loss" in entry]) == STEPS
    assert furthest_apart(here.output, there.output) < 1e-3
    assert loss_of(there.output, "red", "a red ball") < 0.7 * loss_of(base, "red", "a red ball")
    assert not [*there.output.glob(".seen*"), *there.work.glob(".seen*"), *there.work.glob("ray")]


@pytest.mark.long
@pytest.mark.parametrize(("method", "job"), [("sft", sft_job), ("dpo", dpo_job)])
def test_two_workers_learn_as_two_processes_of_accelerate(
    tmp_path: Path,
    base: Path,
    on_ray: Callable[..., TrlTrainer],
    monkeypatch: pytest.MonkeyPatch,
    method: Any,
    job: Any,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    here, there = two_jobs(job, tmp_path, base)
    expected, _ = trained(method, here, trainer=TrlTrainer(TrainerSettings(accelerate="ddp", processes=2)))
    seen, report = trained(method, there, trainer=on_ray())
    assert losses(seen) == pytest.approx(losses(expected), abs=SAME_LOSS)
    assert report["steps"] == len(losses(seen)) > 0
    assert furthest_apart(here.output, there.output) < 1e-3
    (state,) = there.work.glob("checkpoint-*")
    assert sorted(file.name for file in state.glob("rng_state_*")) == ["rng_state_0.pth", "rng_state_1.pth"]


@pytest.mark.long
def test_what_is_wrong_is_said_at_once_and_in_one_line(
    tmp_path: Path, base: Path, on_ray: Callable[..., TrlTrainer]
) -> None:
    job = sft_job(tmp_path, base, batch_size=3)
    started = time.monotonic()
    with pytest.raises(
        TrainingFailed, match=r"^sft ended with status 1: ValueError: batch_size 3 is no multiple of the 2 devices"
    ):
        trained("sft", job, trainer=on_ray())
    assert time.monotonic() - started < 60, "tried again and again"


@pytest.mark.long
def test_a_killed_node_costs_the_steps_since_the_last_state(
    tmp_path: Path, base: Path, nodes: Nodes, on_ray: Callable[..., TrlTrainer]
) -> None:
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    undisturbed.mkdir()
    disturbed.mkdir()
    whole = sft_job(undisturbed, base, **SETTINGS)
    trained("sft", whole, trainer=on_ray())
    job = sft_job(disturbed, base, **SETTINGS)
    spare = nodes.add()
    killed: list[str] = []

    def kill(figures: dict[str, float]) -> None:
        if figures["step"] == KILLED_AT and not killed:
            at_work = {worker.pid for worker in workers()}
            killed.extend(
                address for address in nodes.addresses if address != HEAD and nodes.processes_of(address) & at_work
            )
            nodes.kill(killed[0])

    try:
        seen, report = trained("sft", job, kill, on_ray())
    finally:
        if spare in nodes.addresses:
            nodes.kill(spare)
    assert killed and went_on_at(seen) > KILLED_AT - SETTINGS["save_every"]
    assert report["steps"] == STEPS
    assert furthest_apart(job.output, whole.output) < 1e-3


@pytest.mark.long
def test_interrupting_the_run_saves_the_state_and_ends_the_workers(
    tmp_path: Path, base: Path, on_ray: Callable[..., TrlTrainer]
) -> None:
    job = sft_job(tmp_path, base, **SETTINGS)
    pids: list[int] = []

    def interrupt(figures: dict[str, float]) -> None:
        if figures["step"] == 25:
            pids.extend(worker.pid for worker in workers())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained("sft", job, interrupt, on_ray())
    state = last_state(job.work)
    assert state is not None and int(Path(state).name.removeprefix("checkpoint-")) >= 25
    assert list(job.output.iterdir()) == []
    assert len(pids) == 2 and all(is_gone(pid, 30) for pid in pids)
    seen, _ = trained("sft", job, trainer=on_ray())
    assert min(losses(seen)) > 25


@pytest.mark.long
def test_a_killed_driver_leaves_no_worker_behind(tmp_path: Path, base: Path, on_ray: Callable[..., TrlTrainer]) -> None:
    job = sft_job(tmp_path, base, **SETTINGS)
    pids: list[int] = []

    def kill(figures: dict[str, float]) -> None:
        if figures["step"] == 15 and not pids:
            pids.extend(worker.pid for worker in workers())
            for child in psutil.Process().children():
                if "resources.ray_training" in child.cmdline():
                    child.kill()

    with pytest.raises(TrainingFailed, match="status -9"):
        trained("sft", job, kill, on_ray())
    assert len(pids) == 2 and all(is_gone(pid, 30) for pid in pids)


@pytest.mark.long
def test_workers_that_find_no_room_are_waited_for_so_long(
    tmp_path: Path, base: Path, on_ray: Callable[..., TrlTrainer]
) -> None:
    job = sft_job(tmp_path, base)
    with pytest.raises(TrainingFailed, match=r"has not started 2 workers for 5 s.*each asks for 64 CPUs"):
        trained("sft", job, trainer=on_ray(cpus_per_worker=64, start_seconds=5))
