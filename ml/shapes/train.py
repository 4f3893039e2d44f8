"""Train a tiny video model from nothing: `accelerate launch -m ml.shapes.train --model NAME --out FOLDER`.

Three stages, each resumable from its last saved state: the autoencoder on rendered clips, a cache of latents,
and the text encoder together with the diffusion transformer on those latents and fresh captions. Works on one
or more CPU processes or GPUs. Belongs here: the training loops. Does not belong here: which models there are
(video_models.py), the world (scene.py, captions.py) or its examination (examine.py).
"""

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from numpy.typing import NDArray

from ml.shapes import fast_cpu, model
from ml.shapes.captions import caption
from ml.shapes.scene import FRAMES, SIDE, Clip, Scene, draw_scene, render
from ml.shapes.video_models import COGVIDEOX, MODELS, CropStage, VideoModel

ANGULAR_SHAPES = ("square", "cross")
COLORFUL = 40  # a pixel whose channels differ by more than this belongs to the object


@dataclass(frozen=True)
class Schedule:
    """How long one stage trains, how its learning rate goes, and how often it reports and saves."""

    steps: int
    warmup: int
    decay_from: float
    report_every: int = 100
    save_every: int = 400

    def factor(self, step: int) -> float:
        """Learning-rate factor: linear warm-up, constant, then a cosine to 2 % over the rest."""
        progress = (step / self.steps - self.decay_from) / (1 - self.decay_from)
        decay = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
        return min(1.0, (step + 1) / self.warmup) * (0.02 + 0.98 * decay)


class Average:
    """An exponential moving average of a module's weights: what is saved in the end."""

    def __init__(self, module: torch.nn.Module, momentum: float) -> None:
        self.module = module
        self.momentum = momentum
        self.weights = {name: value.detach().clone() for name, value in module.named_parameters()}

    def update(self, step: int) -> None:
        """Follow the module's weights, faster in the beginning."""
        momentum = min(self.momentum, (1 + step) / (10 + step))
        for name, value in self.module.named_parameters():
            self.weights[name].lerp_(value.detach(), 1 - momentum)

    def copy_to_module(self) -> None:
        """Put the average into the module."""
        with torch.no_grad():
            for name, value in self.module.named_parameters():
                value.copy_(self.weights[name])


def run_stage(
    accelerator: Accelerator,
    name: str,
    module: torch.nn.Module,
    optimizers: list[torch.optim.Optimizer],
    schedule: Schedule,
    momentum: float,
    state_file: Path,
    loss_of: Callable[[torch.nn.Module, int], tuple[torch.Tensor, dict[str, float]]],
) -> None:
    """Train `module` in place for the schedule's steps; the module ends with its averaged weights.

    The state (weights, average, optimizers, step) is saved every `save_every` steps and resumed from.
    """
    module.to(accelerator.device)
    average = Average(module, momentum)
    first_step = _resume(state_file, module, average, optimizers)
    parallel = accelerator.prepare_model(module)
    base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    started, sums = time.monotonic(), defaultdict[str, list[float]](list)
    for step in range(first_step, schedule.steps):
        for optimizer, rates in zip(optimizers, base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule.factor(step)
            optimizer.zero_grad()
        loss, figures = loss_of(parallel, step)
        accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_([p for o in optimizers[:1] for g in o.param_groups for p in g["params"]], 1)
        for optimizer in optimizers:
            optimizer.step()
        average.update(step)
        for key, value in figures.items():
            sums[key].append(value)
        done = step + 1
        if accelerator.is_main_process and (done % schedule.report_every == 0 or done == schedule.steps):
            pace = (time.monotonic() - started) / (done - first_step)
            means = " ".join(f"{key} {np.mean(values):.4f}" for key, values in sorted(sums.items()))
            left = pace * (schedule.steps - done) / 60
            print(
                f"{name} step {done}/{schedule.steps} {means} ({pace:.2f} s/step, {left:.0f} min left)",
                flush=True,
            )
            sums.clear()
        if accelerator.is_main_process and (done % schedule.save_every == 0 or done == schedule.steps):
            _save(state_file, done, module, average, optimizers, base_rates)
    accelerator.wait_for_everyone()
    average.copy_to_module()


def _save(
    state_file: Path,
    step: int,
    module: torch.nn.Module,
    average: Average,
    optimizers: list[torch.optim.Optimizer],
    base_rates: list[list[float]],
) -> None:
    states = [optimizer.state_dict() for optimizer in optimizers]
    for state, rates in zip(states, base_rates, strict=True):
        for group, rate in zip(state["param_groups"], rates, strict=True):
            group["lr"] = rate
    beside = state_file.with_suffix(".writing")
    torch.save(
        {"step": step, "weights": module.state_dict(), "average": average.weights, "optimizers": states},
        beside,
    )
    beside.replace(state_file)


def _resume(
    state_file: Path, module: torch.nn.Module, average: Average, optimizers: list[torch.optim.Optimizer]
) -> int:
    if not state_file.exists():
        return 0
    device = next(module.parameters()).device
    state = torch.load(state_file, weights_only=True, map_location=device)
    module.load_state_dict(state["weights"])
    average.weights = state["average"]
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])


def to_tensor(clips: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 (batch, frames, height, width, 3) -> float (batch, 3, frames, height, width) in -1..1."""
    return torch.from_numpy(clips.astype(np.float32) / 127.5 - 1).permute(0, 4, 1, 2, 3).contiguous()


def train_autoencoder(accelerator: Accelerator, video_model: VideoModel, work: Path, steps: int) -> Any:
    """Small crops first, then larger ones: cheap steps first."""
    torch.manual_seed(0)
    autoencoder = video_model.build_autoencoder()
    module = video_model.autoencoding(autoencoder)
    optimizer = torch.optim.AdamW(module.parameters(), lr=4e-3, betas=(0.9, 0.98), weight_decay=1e-4)
    rng = np.random.default_rng([1, accelerator.process_index, _steps_done(work / "autoencoder.pt")])

    def loss_of(parallel: torch.nn.Module, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        stage = next(stage for stage in video_model.crops if step / steps < stage.until)
        clips = _autoencoder_batch(stage, rng).to(accelerator.device)
        decoded, divergence = parallel(clips)
        error = decoded - clips
        gray = error.mean(1, keepdim=True)
        weight = 1 + 2.0 * ((clips.amax(1, keepdim=True) - clips.amin(1, keepdim=True)) > 0.3)
        squared = ((gray.pow(2) + 2 * (error - gray).pow(2)) * weight).mean()
        reconstruction = squared + 0.1 * (error.abs() * weight).mean()
        figures = {"reconstruction": float(reconstruction.detach()), "divergence": float(divergence.detach())}
        return reconstruction + 2e-4 * divergence, figures

    schedule = Schedule(steps, warmup=40, decay_from=0.25)
    run_stage(accelerator, "autoencoder", module, [optimizer], schedule, 0.99, work / "autoencoder.pt", loss_of)
    return autoencoder


def _autoencoder_batch(stage: CropStage, rng: np.random.Generator) -> torch.Tensor:
    def film() -> Clip:
        clip = render(draw_scene(rng), rng)
        return clip if stage.side == SIDE else _crop(clip, rng, stage.side)

    def cut(clip: Clip) -> Clip:
        first = int(rng.integers(FRAMES - stage.frames + 1)) if stage.frames < FRAMES else 0
        return clip[first : first + stage.frames]

    clips = [film() for _ in range(stage.count)]
    return to_tensor(np.stack([cut(clip) for clip in clips]))


def _crop(clip: Clip, rng: np.random.Generator, side: int) -> Clip:
    """A square crop, mostly one with the object in it."""
    colorful = (clip.max(-1).astype(int) - clip.min(-1)).max(0) > COLORFUL
    rows, columns = np.nonzero(colorful)
    if len(rows) and rng.random() < 0.85:
        one = rng.integers(len(rows))
        top, left = (int(np.clip(v[one] - rng.integers(side), 0, SIDE - side)) for v in (rows, columns))
    else:
        top, left = (int(v) for v in rng.integers(SIDE - side + 1, size=2))
    return clip[:, top : top + side, left : left + side]


@dataclass(frozen=True)
class Latents:
    """Encoded clips: latents (n, frames, channels, h, w), object masks (n, frames, h, w), and their scenes."""

    latents: torch.Tensor
    masks: torch.Tensor
    scenes: list[Scene]


def encode_clips(
    accelerator: Accelerator, video_model: VideoModel, autoencoder: Any, work: Path, count: int, batch: int = 16
) -> Latents:
    """This process's share of `count` encoded clips, kept on disk so that a resumed run reads them back."""
    rank, share = accelerator.process_index, count // accelerator.num_processes
    rng = np.random.default_rng([2, rank])
    scenes = [draw_scene(rng) for _ in range(share)]
    cache = work / f"latents-{rank}.pt"
    if not cache.exists():
        latents, masks = [], []
        for start in range(0, share, batch):
            clips = np.stack([render(scene, rng) for scene in scenes[start : start + batch]])
            with torch.no_grad():
                encoded = video_model.encode(autoencoder, to_tensor(clips).to(accelerator.device))
            latents.append(encoded.half().cpu())
            masks.append(torch.from_numpy(_object_mask(clips)))
            if rank == 0 and start % (batch * 50) == 0:
                print(f"encoding clip {start}/{share}", flush=True)
        torch.save({"latents": torch.cat(latents), "masks": torch.cat(masks)}, cache.with_suffix(".writing"))
        cache.with_suffix(".writing").replace(cache)
    stored = torch.load(cache, weights_only=True)
    accelerator.wait_for_everyone()
    return Latents(stored["latents"], stored["masks"], scenes)


def _object_mask(clips: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which latent cells hold a part of the object: (n, frames, h, w)."""
    cell, side = model.SPATIAL_COMPRESSION, SIDE // model.SPATIAL_COMPRESSION
    colorful = clips.max(-1).astype(np.int16) - clips.min(-1) > COLORFUL
    masks: NDArray[np.bool_] = colorful.reshape(len(clips), FRAMES, side, cell, side, cell).any((3, 5))
    return masks


@dataclass(frozen=True)
class DenoiserSettings:
    """Settings of the transformer's stage; `object_weight` and the share of very noisy steps stress content.

    Scenes with an angular outline are drawn `angular_share` times as often as others: corners are learned last.
    """

    steps: int
    batch: int = 16
    object_weight: float = 3.0
    angular_share: float = 2.0
    high_noise_share: float = 0.5
    high_noise_from: float = 0.75
    unconditional_share: float = 0.1
    rate: float = 2e-3
    matrix_rate: float = 0.01
    slow_rate: float = 3e-4


def train_denoiser(
    accelerator: Accelerator,
    video_model: VideoModel,
    tokenizer: Any,
    data: Latents,
    work: Path,
    settings: DenoiserSettings,
) -> tuple[Any, float]:
    """Train text encoder and transformer; returns them and the latents' scaling factor."""
    torch.manual_seed(0)
    module = video_model.denoising(model.build_text_encoder(len(tokenizer)), video_model.build_transformer())
    scaling = float(1 / accelerator.reduce(data.latents.float().std().to(accelerator.device), "mean"))
    scheduler = video_model.build_scheduler()
    alphas = scheduler.alphas_cumprod.float().to(accelerator.device)
    seed = [3, accelerator.process_index, _steps_done(work / "denoiser.pt")]
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 30)))

    chances = _chances(data.scenes, settings.angular_share)

    def loss_of(parallel: torch.nn.Module, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        del step
        rows = torch.from_numpy(rng.choice(len(data.scenes), size=settings.batch, p=chances))
        clean = (data.latents[rows].float() * scaling).to(accelerator.device)
        texts = [
            ""
            if rng.random() < settings.unconditional_share
            else video_model.text(caption(data.scenes[i], rng, video_model.dialect))
            for i in rows
        ]
        tokens = tokenizer(
            texts, padding="max_length", max_length=video_model.text_tokens, truncation=True, return_tensors="pt"
        ).input_ids.to(accelerator.device)
        timestep = _timesteps(settings, generator).to(accelerator.device)
        alpha = alphas[timestep].view(-1, 1, 1, 1, 1)
        noise = torch.randn(clean.shape, generator=generator).to(accelerator.device)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        with accelerator.autocast():
            predicted = parallel(tokens, noisy, timestep)
        squared = (predicted.float() - clean).pow(2)
        weight = 1 + settings.object_weight * data.masks[rows].float()[:, :, None].to(accelerator.device)
        loss = (squared * weight / weight.mean() * (1 / (1 - alpha)).clamp(max=4)).mean()
        return loss, _error_by_noise(squared.detach().mean((1, 2, 3, 4)), timestep)

    schedule = Schedule(settings.steps, warmup=60, decay_from=0.45)
    optimizers = _denoiser_optimizers(module, video_model, settings)
    run_stage(accelerator, "denoiser", module, optimizers, schedule, 0.998, work / "denoiser.pt", loss_of)
    return module, scaling


def _chances(scenes: Sequence[Scene], angular_share: float) -> NDArray[np.float64]:
    """How likely each scene is to be drawn, (scenes,), summing to 1."""
    weights = np.array([angular_share if scene.shape in ANGULAR_SHAPES else 1.0 for scene in scenes])
    chances: NDArray[np.float64] = weights / weights.sum()
    return chances


def _timesteps(settings: DenoiserSettings, generator: torch.Generator) -> torch.Tensor:
    uniform = torch.rand(settings.batch, generator=generator)
    high = settings.high_noise_from + (1 - settings.high_noise_from) * uniform
    is_high = torch.rand(settings.batch, generator=generator) < settings.high_noise_share
    share = torch.where(is_high, high, uniform)
    return (model.TRAIN_TIMESTEPS * share).long().clamp(0, model.TRAIN_TIMESTEPS - 1)


def _error_by_noise(errors: torch.Tensor, timestep: torch.Tensor) -> dict[str, float]:
    bands = {"error_low": timestep < 500, "error_high": timestep >= 900}
    bands["error_mid"] = ~bands["error_low"] & ~bands["error_high"]
    return {name: float(errors[band].mean()) for name, band in bands.items() if band.any()}


def _denoiser_optimizers(
    module: torch.nn.Module, video_model: VideoModel, settings: DenoiserSettings
) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, which learns faster here, and AdamW for everything else.

    Where nothing normalises queries and keys, Muon lets them grow until attention is all or nothing and learning
    stops; they get a slow AdamW there.
    """
    matrices: list[torch.nn.Parameter] = []
    slow: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, weight in module.named_parameters():
        in_transformer = "transformer_blocks" in name and "norm" not in name and "table" not in name
        in_text_encoder = ".block." in name and "relative" not in name
        if not video_model.normalises_queries and in_transformer and ("to_q" in name or "to_k" in name):
            slow.append(weight)
        else:
            (matrices if weight.dim() == 2 and (in_transformer or in_text_encoder) else rest).append(weight)
    groups: list[dict[str, Any]] = [{"params": rest}]
    if slow:
        groups.append({"params": slow, "lr": settings.slow_rate})
    return [
        torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.0),
        torch.optim.Muon(matrices, lr=settings.matrix_rate, momentum=0.95, weight_decay=0.0),
    ]


def _steps_done(state_file: Path) -> int:
    """Steps in a saved state; part of the data's seed, so that a resumed run does not see its data again."""
    if not state_file.exists():
        return 0
    return int(torch.load(state_file, weights_only=True, mmap=True)["step"])


def settings_from_command_line() -> argparse.Namespace:
    """The command's arguments, with defaults that take about an hour and a half on two CPU cores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default=COGVIDEOX.name)
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished pipeline")
    parser.add_argument("--work", type=Path, help="folder for resumable state; .vpo/shapes-training/NAME if not given")
    parser.add_argument("--autoencoder-steps", type=int, default=2400)
    parser.add_argument("--denoiser-steps", type=int, default=27000)
    parser.add_argument("--clips", type=int, default=24000, help="encoded clips to train the transformer on")
    parser.add_argument("--batch", type=int, default=16, help="clips a step and process")
    parser.add_argument(
        "--mixed-precision", choices=("bf16", "no"), default="bf16", help="no: twice as fast on a CPU without AMX"
    )
    return parser.parse_args()


def stages(arguments: argparse.Namespace) -> Iterator[str]:
    """Run the three stages one after the other, yielding a line about each finished one."""
    accelerator = Accelerator(mixed_precision=arguments.mixed_precision, cpu=not torch.cuda.is_available())
    if accelerator.device.type == "cpu":
        torch.set_num_threads(1 if accelerator.num_processes > 1 else torch.get_num_threads())
        fast_cpu.switch_on(full_precision=arguments.mixed_precision == "no")
    set_seed(accelerator.process_index)
    video_model = MODELS[arguments.model]
    work: Path = arguments.work or Path(".vpo/shapes-training") / video_model.name
    work.mkdir(parents=True, exist_ok=True)
    autoencoder = train_autoencoder(accelerator, video_model, work, arguments.autoencoder_steps).eval()
    yield "autoencoder trained"
    data = encode_clips(accelerator, video_model, autoencoder, work, arguments.clips)
    yield f"{arguments.clips} clips encoded"
    tokenizer = video_model.build_tokenizer()
    settings = DenoiserSettings(steps=arguments.denoiser_steps, batch=arguments.batch)
    denoiser, scaling = train_denoiser(accelerator, video_model, tokenizer, data, work, settings)
    if accelerator.is_main_process:
        autoencoder.register_to_config(scaling_factor=scaling)
        pipeline = video_model.build_pipeline(tokenizer, denoiser.text_encoder, autoencoder, denoiser.transformer)
        pipeline.to("cpu").save_pretrained(arguments.out)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    yield f"pipeline saved in {arguments.out}"


def main() -> None:
    """Train everything that is not trained yet."""
    for line in stages(settings_from_command_line()):
        print(line, flush=True)


if __name__ == "__main__":
    main()
