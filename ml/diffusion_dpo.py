"""Diffusion-DPO of a video model's transformer (Wallace et al. 2023, arXiv 2311.12908): `python -m ml.diffusion_dpo
JOB.json`.

Data: Parquet with `prompt`, `chosen_video_id` and `rejected_video_id`, and each film as `<video id>.npy`, uint8
(frames, height, width, 3), in the job's folder of clips. Belongs here: the loss and its training loop. Does not belong
here: which pairs there are (video_pairs.py), and reading films from the store.
"""

import contextlib
import copy
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from ml.alignment_settings import AlignmentSettings
from ml.fine_tuning import NothingToLearn, TrainingJob, TrainingReport, interrupted_after, last_state, run
from ml.supervision import ParentProcess, Supervisor

PIPELINE = "CogVideoXPipeline"
PREDICTIONS = ("sample", "epsilon", "v_prediction")
LARGEST_GRADIENT = 1.0
STATE_FILE = "state.pt"


class CannotAlign(RuntimeError):
    """A video model that this training does not know; says why."""


@dataclass(frozen=True)
class Examples:
    """Every pair as indices into `latents` (films, frames, channels, height, width) and `texts` (texts, tokens,
    width)."""

    latents: torch.Tensor
    texts: torch.Tensor
    chosen: torch.Tensor
    rejected: torch.Tensor
    text: torch.Tensor

    def __len__(self) -> int:
        return len(self.text)


def preference_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """-log sigmoid(-beta/2 [(e_w - e_w_ref) - (e_l - e_l_ref)]), the mean over pairs, and what there is to watch.

    Each argument (pairs,) holds mean squared errors of the model's own prediction, the two films of a pair under the
    same noise and timestep. The weight w(t) is 1 in the terms of that prediction, as in the paper's own training.
    """
    reward_chosen = -beta / 2 * (chosen - reference_chosen)
    reward_rejected = -beta / 2 * (rejected - reference_rejected)
    margins = reward_chosen - reward_rejected
    figures = {
        "rewards/chosen": reward_chosen.detach().mean(),
        "rewards/rejected": reward_rejected.detach().mean(),
        "rewards/margins": margins.detach().mean(),
        "rewards/accuracies": (margins.detach() > 0).float().mean(),
    }
    return -functional.logsigmoid(margins).mean(), figures


def prediction_target(scheduler: Any, latents: torch.Tensor, noise: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """What the model is to predict, by its scheduler's prediction type. Raises CannotAlign for flow matching."""
    kind = scheduler.config.get("prediction_type")
    if kind == "sample":
        return latents
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        velocity: torch.Tensor = scheduler.get_velocity(latents, noise, steps)
        return velocity
    raise CannotAlign(
        f"{type(scheduler).__name__} has the prediction type {kind!r}; Diffusion-DPO here knows "
        f"{', '.join(PREDICTIONS)} (models of flow matching are not among them)"
    )


class Aligner:
    """The transformer that learns, the one it was, and what both are asked with."""

    def __init__(self, pipeline: Any, job: TrainingJob, settings: AlignmentSettings) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.settings, self.dtype = settings, getattr(torch, job.dtype)
        self.scheduler = pipeline.scheduler
        nothing = torch.zeros(1, 1, 1, 1, 1)
        prediction_target(self.scheduler, nothing, nothing, torch.zeros(1, dtype=torch.long))  # refused before any work
        # What is trained is held in float32, whatever it is computed in: small updates are nothing in bfloat16.
        self.model = pipeline.transformer.to(self.device, torch.float32)
        self.reference = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.model.requires_grad_(True).train()
        if settings.gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
        self.rotary: Any = None

    def step(self, examples: Examples, number: int) -> dict[str, float]:
        """One step, whose pairs, noise and timesteps the seed and its number decide."""
        settings = self.settings
        draw = torch.Generator().manual_seed((settings.seed or 0) * 1_000_003 + number)
        rows = _batch(len(examples), settings.batch_size, settings.seed or 0, number)
        steps = torch.randint(self.scheduler.config.num_train_timesteps, (len(rows),), generator=draw)
        noise = torch.randn((len(rows), *examples.latents.shape[1:]), generator=draw)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, (number + 1) / (settings.warmup + 1))
        self.optimizer.zero_grad()
        figures = {"loss": 0.0}
        for part in torch.split(torch.arange(len(rows)), settings.micro_batch_size):
            share = len(part) / len(rows)
            loss, found = self._loss(examples, rows[part], steps[part], noise[part])
            torch.autograd.backward(loss * share)
            for name, value in {"loss": loss.detach(), **found}.items():
                figures[name] = figures.get(name, 0.0) + float(value) * share
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_GRADIENT)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient of step {number + 1} is not finite: lower alignment.learning_rate")
        self.optimizer.step()
        return {**figures, "grad_norm": float(norm), "learning_rate": self.optimizer.param_groups[0]["lr"]}

    def _loss(
        self, examples: Examples, rows: torch.Tensor, steps: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        films = torch.cat([examples.latents[examples.chosen[rows]], examples.latents[examples.rejected[rows]]])
        latents = films.to(self.device)
        texts = examples.texts[examples.text[rows]].to(self.device).repeat(2, 1, 1)
        steps, noise = steps.to(self.device).repeat(2), noise.to(self.device).repeat(2, 1, 1, 1, 1)
        noisy = self.scheduler.add_noise(latents, noise, steps)
        target = prediction_target(self.scheduler, latents, noise, steps)
        errors = self._errors(self.model, noisy, texts, steps, target)
        with torch.no_grad():
            before = self._errors(self.reference, noisy, texts, steps, target)
        (chosen, rejected), (chosen_before, rejected_before) = errors.chunk(2), before.chunk(2)
        return preference_loss(chosen, rejected, chosen_before, rejected_before, self.settings.beta)

    def _errors(
        self, model: Any, noisy: torch.Tensor, texts: torch.Tensor, steps: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        low = self.dtype is not torch.float32
        with torch.autocast(self.device.type, self.dtype) if low else contextlib.nullcontext():
            predicted = model(
                hidden_states=noisy,
                encoder_hidden_states=texts,
                timestep=steps,
                image_rotary_emb=self.rotary,
                return_dict=False,
            )[0]
        errors: torch.Tensor = (predicted.float() - target).pow(2).flatten(1).mean(1)
        return errors

    def save_state(self, work: Path, done: int, curve: Sequence[dict[str, float]]) -> None:
        """A state to resume from; `trainer_state.json` comes last, so that one that has it is whole."""
        folder = work / f"checkpoint-{done}"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, folder / STATE_FILE)
        beside = folder / "trainer_state.writing"
        beside.write_text(json.dumps({"global_step": done, "log_history": list(curve)}))
        beside.replace(folder / "trainer_state.json")
        for other in work.glob("checkpoint-*"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)

    def resume(self, work: Path) -> tuple[int, list[dict[str, float]]]:
        """Steps done and their figures, of the last whole state; none of either without one."""
        found = last_state(work)
        if found is None:
            return 0, []
        state = torch.load(Path(found) / STATE_FILE, weights_only=True, map_location=self.device)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        said = json.loads((Path(found) / "trainer_state.json").read_text())
        return int(said["global_step"]), list(said["log_history"])


def train(job: TrainingJob, supervisor: Supervisor | None = None) -> None:
    """Train as the job says, from the job's pipeline, whose transformer is saved alone. Raises Interrupted."""
    settings = job.alignment
    if settings is None or job.clips is None:
        raise ValueError("the job has no alignment settings, or no folder of clips")
    supervisor = supervisor or ParentProcess()
    started = time.monotonic()
    pairs = _pairs(job)
    pipeline = load_pipeline(job)
    aligner = Aligner(pipeline, job, settings)
    examples = prepare(pipeline, pairs, job, aligner.device)
    frames, _, height, width = examples.latents.shape[1:]
    aligner.rotary = _rotary(pipeline, frames, height, width, aligner.device)
    curve = _steps(aligner, examples, job.work, supervisor)
    # Weights are kept in float32: what was learned may be smaller than what another dtype can tell apart.
    aligner.model.save_pretrained(job.output, safe_serialization=True)
    seconds = round(time.monotonic() - started, 1)
    TrainingReport(len(pairs), 0, settings.steps, seconds, curve).save(job.output)


def _steps(aligner: Aligner, examples: Examples, work: Path, supervisor: Supervisor) -> list[dict[str, float]]:
    settings = aligner.settings
    first, curve = aligner.resume(work)
    supervisor.listen()
    for number in range(first, settings.steps):
        figures = {"step": float(number + 1), **aligner.step(examples, number)}
        curve.append(figures)
        supervisor.progress({"steps": settings.steps, **figures})
        done = number + 1
        asked = supervisor.end_is_asked() and done < settings.steps
        if asked or (done % settings.save_every == 0 and done < settings.steps):
            aligner.save_state(work, done, curve)
        if asked:
            raise interrupted_after(done, settings.steps)
    supervisor.stop_listening()
    return curve


def load_pipeline(job: TrainingJob) -> Any:
    """The whole pipeline in the job's dtype. Raises CannotAlign for one of another kind than CogVideoX."""
    import diffusers

    config = diffusers.DiffusionPipeline.load_config(job.base_model, revision=job.revision)
    if config.get("_class_name") != PIPELINE:
        raise CannotAlign(
            f"Diffusion-DPO here knows {PIPELINE}, and the target's video model is a {config.get('_class_name')}"
        )
    pipeline = diffusers.CogVideoXPipeline.from_pretrained(
        job.base_model, revision=job.revision, dtype=getattr(torch, job.dtype), use_safetensors=True
    )
    if pipeline.transformer.config.patch_size_t is not None:
        raise CannotAlign("Diffusion-DPO here knows CogVideoX up to 1.0, whose transformer has no patches in time")
    return pipeline


def prepare(pipeline: Any, pairs: Sequence[dict[str, Any]], job: TrainingJob, device: torch.device) -> Examples:
    """Films through the pipeline's autoencoder and texts through its text encoder, each once; both are left frozen."""
    assert job.clips is not None
    films = sorted({pair[f"{side}_video_id"] for pair in pairs for side in ("chosen", "rejected")})
    texts = sorted({pair["prompt"] for pair in pairs})
    place = {name: number for number, name in enumerate(films)}
    line = {text: number for number, text in enumerate(texts)}
    with torch.no_grad(), _on(pipeline.vae, device):
        latents = [encode_film(pipeline, np.load(job.clips / f"{name}.npy", allow_pickle=False)) for name in films]
    if len({tuple(latent.shape) for latent in latents}) > 1:
        raise CannotAlign("the films of the pairs differ in size or length: render them with the same arguments")
    given = {} if job.max_sequence_length is None else {"max_sequence_length": job.max_sequence_length}
    with torch.no_grad(), _on(pipeline.text_encoder, device):
        encoded = [
            pipeline.encode_prompt([text], do_classifier_free_guidance=False, device=device, **given)[0].float().cpu()
            for text in texts
        ]
    return Examples(
        torch.stack(latents),
        torch.cat(encoded),
        torch.tensor([place[pair["chosen_video_id"]] for pair in pairs]),
        torch.tensor([place[pair["rejected_video_id"]] for pair in pairs]),
        torch.tensor([line[pair["prompt"]] for pair in pairs]),
    )


def encode_film(pipeline: Any, film: np.ndarray[Any, Any]) -> torch.Tensor:
    """uint8 (frames, height, width, 3) -> latents (frames, channels, height, width) as the transformer sees them."""
    vae = pipeline.vae
    pixels = torch.from_numpy(film.astype(np.float32) / 127.5 - 1).permute(3, 0, 1, 2)[None]
    latent = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()[0].permute(1, 0, 2, 3)
    scaled: torch.Tensor = latent.float().cpu() * vae.config.scaling_factor
    return scaled


def _batch(examples: int, size: int, seed: int, step: int) -> torch.Tensor:
    """The examples of a step: the set in an order of its own in every round, cut into batches without a break."""
    first, last = step * size, (step + 1) * size
    rounds = range(first // examples, (last - 1) // examples + 1)
    order = [torch.randperm(examples, generator=torch.Generator().manual_seed(seed * 7919 + one)) for one in rounds]
    start = first - rounds[0] * examples
    return torch.cat(order)[start : start + size]


def _rotary(pipeline: Any, frames: int, height: int, width: int, device: torch.device) -> Any:
    if not pipeline.transformer.config.use_rotary_positional_embeddings:
        return None
    scale = pipeline.vae_scale_factor_spatial
    return pipeline._prepare_rotary_positional_embeddings(height * scale, width * scale, frames, device)


@contextlib.contextmanager
def _on(module: Any, device: torch.device) -> Iterator[None]:
    """The module on a device, and off it again: while the transformer learns, the memory is the transformer's."""
    module.to(device).eval().requires_grad_(False)
    try:
        yield
    finally:
        module.to("cpu")


def _pairs(job: TrainingJob) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    names = ["prompt", "chosen_video_id", "rejected_video_id"]
    rows: list[dict[str, Any]] = pq.read_table(job.data, columns=names).to_pylist()
    if not rows:
        raise NothingToLearn(
            f"{job.data} holds no pairs of films: the margin of alignment.pairs may be too wide, and condition: prompt "
            "needs two seeds a prompt"
        )
    return rows


if __name__ == "__main__":
    run(train)
