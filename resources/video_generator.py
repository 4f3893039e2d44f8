"""Text-to-video models: prompts in, clips out.

Belongs here: the interface `VideoGenerator`, and the backend that runs any diffusers pipeline in this process.
Does not belong here: storing clips (storage/videos.py).
"""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from resources.fingerprint import folder_fingerprint
from resources.language_model import Identity
from resources.settings import EMBEDDED, VideoGeneratorSettings

SHAPES_MODEL = Path(__file__).parent.parent / "ml" / "shapes" / "weights"

Clip = NDArray[np.uint8]
"""uint8, (frames, height, width, 3), RGB."""


class CannotRender(RuntimeError):
    """A video model that cannot be loaded or did not give a video, with what to do about it."""


class VideoGenerator(Protocol):
    """A text-to-video model."""

    fps: float

    def identity(self) -> Identity:
        """What decides its pixels beside prompt and seed: part of the recipe of every video."""
        ...

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Clip]:
        """One clip a prompt, in order; the same prompt and seed give the same clip."""
        ...

    def close(self) -> None:
        """Free the model's memory; the next call loads it again."""
        ...


class DiffusersVideoGenerator:
    """Any text-to-video pipeline of diffusers."""

    def __init__(self, settings: VideoGeneratorSettings) -> None:
        self.settings = settings
        self.fps = settings.fps
        self._pipeline: Any = None

    def identity(self) -> Identity:
        settings = self.settings
        folder = self._folder()
        return {
            "backend": settings.backend,
            "model": settings.model,
            "revision": folder_fingerprint(folder) if folder else settings.revision,
            "dtype": settings.dtype,
            **{f"argument {name}": value for name, value in sorted(settings.arguments.items())},
        }

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Clip]:
        clips: list[Clip] = []
        for start in range(0, len(prompts), self.settings.batch_size):
            rows = slice(start, start + self.settings.batch_size)
            clips.extend(self._generate_batch(prompts[rows], seeds[rows]))
        return clips

    def close(self) -> None:
        self._pipeline = None
        gc.collect()
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _generate_batch(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Clip]:
        import torch

        pipeline = self._load()
        output = pipeline(
            prompt=list(prompts),
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type="np",
            **self.settings.arguments,
        ).frames
        if not np.isfinite(output).all():
            raise CannotRender(
                f"{self.settings.model} gave pixels that are not finite; another dtype than "
                f"{self.settings.dtype} may help"
            )
        return [np.clip(np.rint(clip * 255), 0, 255).astype(np.uint8) for clip in output]

    def _folder(self) -> Path | None:
        if self.settings.model == EMBEDDED:
            return SHAPES_MODEL
        folder = Path(self.settings.model)
        return folder if folder.is_dir() else None

    def _load(self) -> Any:
        if self._pipeline is None:
            import torch
            from diffusers import DiffusionPipeline

            settings = self.settings
            try:
                pipeline = DiffusionPipeline.from_pretrained(
                    self._folder() or settings.model,
                    revision=settings.revision,
                    dtype=getattr(torch, settings.dtype),
                )
            except OSError as error:
                raise CannotRender(
                    f"the video model {settings.model} cannot be loaded: {str(error).splitlines()[0]}; name a folder "
                    "or a hub model in targets.*.video_generator.model"
                ) from error
            device = settings.device
            if device == "auto":
                device = "cuda" if torch.cuda.is_available() else "cpu"
            pipeline.set_progress_bar_config(disable=True)
            self._pipeline = pipeline.to(device)
        return self._pipeline


def build_video_generator(settings: VideoGeneratorSettings) -> VideoGenerator:
    """The video model that the profile names for a target."""
    return DiffusersVideoGenerator(settings)
