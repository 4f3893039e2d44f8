"""What a model must be able to do to be served.

Belongs here: the two kinds of models and what passes between them and the server. Does not belong here: any model,
batching (answering.py), HTTP (server.py). A model of your own is a class in a file of your own, derived from one of
these two and named to the server with --adapter.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
"""uint8, (frames, height, width, 3), RGB."""


@dataclass(frozen=True)
class Sampling:
    """Which frames a model is shown: so many a second of the clip, from its beginning, and no more than `most`."""

    per_second: float
    most: int


@dataclass(frozen=True)
class Start:
    """How a model is to be loaded."""

    model: str
    revision: str | None
    device: str
    trust_remote_code: bool


@dataclass(frozen=True)
class Said:
    """What a model said to one question, as it said it, and its probability of yes where it knows one."""

    text: str
    probability: float | None = None


@dataclass(frozen=True)
class Score:
    """One of the scores that a model gives: a number from `low` to `high`, the higher the better."""

    name: str
    low: float
    high: float
    weight: float = 1.0
    text: str = ""


class OutOfMemory(Exception):
    """The device has too little memory for so much at once. CUDA's own error is known, too."""


class CannotStart(Exception):
    """A model that cannot be loaded, with what to do about it."""


class Model(ABC):
    """What both kinds have in common. Only one thread calls a model at a time."""

    kind: ClassVar[str]
    sampling: ClassVar[Sampling]

    def __init__(self, start: Start) -> None:
        self.start = start

    @abstractmethod
    def load(self) -> None:
        """Load the weights. Raises CannotStart."""

    def free_memory(self) -> None:  # noqa: B027 (a model may have nothing to give back)
        """Give back what can be given back; called after the device ran out of memory."""


class ChecklistModel(Model):
    """A model that answers yes or no."""

    kind = "checklist"

    @abstractmethod
    def encode(self, frames: Frames) -> Any:
        """What all questions about a clip need, made once a clip."""

    @abstractmethod
    def answer(self, features: Any, questions: Sequence[str]) -> Sequence[Said]:
        """What the model says to each question, in order; all of them in one batch."""


class ScalarModel(Model):
    """A model that gives every clip some named scores."""

    kind = "scalar"
    scores: ClassVar[Sequence[Score]]

    @abstractmethod
    def score(self, clips: Sequence[Frames], queries: Sequence[str]) -> Sequence[dict[str, float]]:
        """Every score by its name, for each clip and what it was asked to show; all of them in one batch."""
