"""Reward models of videos: video-level feedback as answers to a checklist of yes/no questions.

Belongs here: the interface `VideoReward` and its backends. Does not belong here: what the answers are worth
(ml/checklist.py) or the measuring of pixels (ml/shapes/pixels.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ml.checklist import Checklist
from resources.backend_settings import (
    OwnVideoRewardSettings,
    PixelRewardSettings,
    VideoRewardSettings,
    VlmRewardSettings,
)
from resources.language_model import Identity
from resources.outcome import Outcome
from resources.video_generator import Clip


@dataclass(frozen=True)
class Answer:
    """The answer to one question, with the probability of yes (0 or 1 where the backend is certain)."""

    question: str
    yes: bool
    probability: float


class VideoReward(Protocol):
    """Answers every question of its checklist about a video. It sees the user's query, never the prompt."""

    @property
    def checklist(self) -> Checklist:
        """The questions, in the order of the answers."""
        ...

    def identity(self) -> Identity:
        """What decides its answers: part of the recipe of every reward."""
        ...

    def answer(self, queries: Sequence[str], clips: Sequence[Clip]) -> list[Outcome[list[Answer]]]:
        """For every pair of query and clip, in order, one answer a question, in the checklist's order.

        An answer that is neither yes nor no leaves the whole clip without answers: it is a Failed outcome.
        """
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class PixelReward:
    """The offline checklist of the shapes world: answers by measuring pixels."""

    def __init__(self) -> None:
        from ml.shapes.pixels import pixel_checklist

        self.checklist = pixel_checklist()

    def identity(self) -> Identity:
        return {"backend": "pixels", "checklist": self.checklist.name, "version": self.checklist.version}

    def answer(self, queries: Sequence[str], clips: Sequence[Clip]) -> list[Outcome[list[Answer]]]:
        from ml.rules import wish_of
        from ml.shapes.pixels import answers, measure

        all_answers: list[Outcome[list[Answer]]] = []
        for query, clip in zip(queries, clips, strict=True):
            found = answers(measure(clip), wish_of(query))
            all_answers.append([Answer(name, found[name], float(found[name])) for name in self.checklist.ids])
        return all_answers

    def close(self) -> None:
        """Nothing to free."""


def build_video_reward(settings: VideoRewardSettings, *, fps: float = 8.0, folder: Path | None = None) -> VideoReward:
    """The reward model that the profile names for a target.

    `fps` is the pace of the target's clips; `folder` is where clips are laid out for a server on the same disk.
    """
    if isinstance(settings, PixelRewardSettings):
        return PixelReward()
    if isinstance(settings, VlmRewardSettings):
        from resources.vlm_reward import VlmReward

        return VlmReward(settings, fps=fps, folder=folder)
    if isinstance(settings, OwnVideoRewardSettings):
        from resources.own_code import OwnVideoReward

        return OwnVideoReward(settings)
    from resources.visionreward import VisionReward

    return VisionReward(settings, fps=fps)
