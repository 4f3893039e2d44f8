"""Diffusion-DPO: its loss by hand, and real trainings of a tiny video model."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ml.alignment_settings import AlignmentSettings
from ml.diffusion_dpo import CannotAlign, _batch, load_pipeline, prediction_target, preference_loss, train
from ml.fine_tuning import Interrupted, TrainingJob, last_state
from ml.supervision import ParentProcess
from tests.resources.tiny_pipelines import TINY_PIPELINES, save_tiny_pipeline


def test_the_loss_is_that_of_the_paper() -> None:
    chosen, rejected = torch.tensor([0.1, 0.5]), torch.tensor([0.4, 0.2])
    before = torch.tensor([0.2, 0.3])
    loss, figures = preference_loss(chosen, rejected, before, before, beta=4.0)
    margins = [-2 * ((0.1 - 0.2) - (0.4 - 0.2)), -2 * ((0.5 - 0.3) - (0.2 - 0.3))]
    assert float(loss) == pytest.approx(sum(math.log(1 + math.exp(-one)) for one in margins) / 2)
    assert float(figures["rewards/margins"]) == pytest.approx(sum(margins) / 2, abs=1e-6)
    assert float(figures["rewards/accuracies"]) == 0.5


def test_a_model_that_is_its_own_reference_begins_at_log_2_and_learns_to_film_the_chosen_better() -> None:
    errors = torch.tensor([0.3], requires_grad=True)
    rejected = torch.tensor([0.3], requires_grad=True)
    loss, _ = preference_loss(errors, rejected, errors.detach(), rejected.detach(), beta=10.0)
    assert float(loss.detach()) == pytest.approx(math.log(2))
    loss.backward()
    assert errors.grad is not None and rejected.grad is not None
    assert float(errors.grad) > 0 > float(rejected.grad)


def test_what_is_predicted_is_the_schedulers_to_say() -> None:
    from diffusers import CogVideoXDDIMScheduler, FlowMatchEulerDiscreteScheduler

    latents, noise, steps = torch.ones(1, 2, 1, 1, 1), torch.full((1, 2, 1, 1, 1), 2.0), torch.tensor([500])
    found = {}
    for kind in ("sample", "epsilon", "v_prediction"):
        scheduler = CogVideoXDDIMScheduler(prediction_type=kind)
        found[kind] = prediction_target(scheduler, latents, noise, steps)
        share = scheduler.alphas_cumprod[500]
    assert torch.equal(found["sample"], latents) and torch.equal(found["epsilon"], noise)
    assert torch.allclose(found["v_prediction"], share.sqrt() * noise - (1 - share).sqrt() * latents)
    with pytest.raises(CannotAlign, match="flow matching"):
        prediction_target(FlowMatchEulerDiscreteScheduler(), latents, noise, steps)


def test_every_round_sees_every_pair_once_in_another_order() -> None:
    seen = torch.cat([_batch(10, 4, 3, step) for step in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert _batch(2, 5, 0, 1).shape == (5,)


def test_a_pipeline_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    job = TrainingJob(base_model=str(tmp_path), data=tmp_path, work=tmp_path, output=tmp_path)
    with pytest.raises(CannotAlign, match=r"CogVideoXPipeline.*WanPipeline"):
        load_pipeline(job)


# ---- real trainings --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = next(name for name, tiny in TINY_PIPELINES.items() if tiny.pipeline_class == "CogVideoXPipeline")
    return save_tiny_pipeline(name, tmp_path_factory.mktemp("pipeline"))


def job_in(folder: Path, pipeline: Path, **settings: Any) -> TrainingJob:
    """Bright films are preferred to dark ones."""
    clips = folder / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(6):
        for side, light in (("chosen", 200), ("rejected", 20)):
            noise = rng.integers(0, 40, (5, 32, 32, 3), dtype=np.uint8)
            np.save(clips / f"{side}{number}.npy", noise + np.uint8(light))
    rows = [
        {"prompt": f"a film {n % 3}", "chosen_video_id": f"chosen{n}", "rejected_video_id": f"rejected{n}"}
        for n in range(6)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "data.parquet")
    for name in ("work", "output"):
        (folder / name).mkdir(exist_ok=True)
    given = {"steps": 6, "batch_size": 4, "learning_rate": 1e-3, "beta": 100.0, "warmup": 0, "seed": 1, **settings}
    return TrainingJob(
        base_model=str(pipeline),
        dtype="float32",
        data=folder / "data.parquet",
        work=folder / "work",
        output=folder / "output",
        alignment=AlignmentSettings(**given),
        clips=clips,
        max_sequence_length=64,  # as many as the transformer was made for
    )


class AskedAfter(ParentProcess):
    """A supervisor that wants the training to end after so many steps, by the signal that a real one sends."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def progress(self, figures: dict[str, float]) -> None:
        if figures["step"] == self.steps:
            os.kill(os.getpid(), signal.SIGTERM)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "diffusion_pytorch_model.safetensors")


@pytest.mark.slow
def test_a_training_that_was_ended_goes_on_to_the_same_weights(tmp_path: Path, pipeline: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    whole = job_in(tmp_path / "whole", pipeline)
    train(whole, AskedAfter(0))
    report = json.loads((whole.output / "training.json").read_text())
    assert (report["examples"], report["steps"], len(report["curve"])) == (6, 6, 6)
    assert report["curve"][0]["loss"] == pytest.approx(math.log(2))
    assert report["curve"][-1]["rewards/margins"] > 0

    broken = job_in(tmp_path / "broken", pipeline, micro_batch_size=4)
    with pytest.raises(Interrupted, match="after step 2 of 6"):
        train(broken, AskedAfter(2))
    assert last_state(broken.work) == str(broken.work / "checkpoint-2")
    assert not list(broken.output.iterdir())
    train(broken, AskedAfter(0))
    signal.signal(signal.SIGTERM, before)
    ours, theirs = weights_of(whole.output), weights_of(broken.output)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    first = weights_of(pipeline / "transformer")
    assert any(not torch.equal(ours[name], first[name]) for name in ours)


@pytest.mark.slow
def test_the_generator_films_with_the_transformer_that_learned(tmp_path: Path, pipeline: Path) -> None:
    from resources.backend_settings import DiffusersSettings
    from resources.diffusers_generator import DiffusersVideoGenerator

    job = job_in(tmp_path, pipeline, steps=2)
    train(job, AskedAfter(0))
    tiny = next(tiny for tiny in TINY_PIPELINES.values() if tiny.pipeline_class == "CogVideoXPipeline")
    settings = DiffusersSettings(model=str(pipeline), device="cpu", arguments=tiny.arguments)
    base, aligned = DiffusersVideoGenerator(settings), DiffusersVideoGenerator(settings, job.output)
    assert base.identity() == aligned.identity()
    (plain,), (learned,) = (one.generate(["a film"], [3]) for one in (base, aligned))
    assert isinstance(plain, np.ndarray) and isinstance(learned, np.ndarray)
    assert plain.shape == learned.shape and not np.array_equal(plain, learned)
