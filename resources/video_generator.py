"""Text-to-video models: prompts in, clips out.

Belongs here: the interface `VideoGenerator`. Does not belong here: the backends (diffusers_generator.py,
video_server.py) or storing clips (storage/videos.py).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from resources.backend_settings import DiffusersSettings, OwnVideoGeneratorSettings, VideoGeneratorSettings
from resources.language_model import Identity
from resources.outcome import Outcome

Clip = NDArray[np.uint8]
"""uint8, (frames, height, width, 3), RGB."""


class VideoGenerator(Protocol):
    """A text-to-video model."""

    fps: float

    def identity(self) -> Identity:
        """What decides its pixels beside prompt and seed: part of the recipe of every video."""
        ...

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Outcome[Clip]]:
        """One clip a prompt, in order; the same prompt and seed give the same clip, whatever is in the batch."""
        ...

    def close(self) -> None:
        """Free the model's memory; the next call loads it again."""
        ...


def build_video_generator(
    settings: VideoGeneratorSettings, jobs: Path | None = None, transformer: Path | None = None
) -> VideoGenerator:
    """The video model that the profile names for a target; `jobs` is where a video server's open jobs are noted, and
    `transformer` the folder of one that takes the place of a pipeline's own."""
    if isinstance(settings, DiffusersSettings):
        from resources.diffusers_generator import DiffusersVideoGenerator

        return DiffusersVideoGenerator(settings, transformer)
    if transformer is not None:
        raise ValueError(f"a video model of backend {settings.backend} takes no other transformer")
    if isinstance(settings, OwnVideoGeneratorSettings):
        from resources.own_code import OwnVideoGenerator

        return OwnVideoGenerator(settings)
    from resources.video_server import ServedVideoGenerator

    return ServedVideoGenerator(settings, jobs)
