"""A batch of clips on its way through a model.

Belongs here: a bad clip failing alone, batches that shrink when memory runs out, and what counts as an answer. Does
not belong here: models (interface.py), reading requests (protocol.py), HTTP (server.py).
"""

import math
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from services.visionreward.frames import UnreadableVideo, sampled_frames
from services.visionreward.interface import ChecklistModel, Frames, OutOfMemory, Said, ScalarModel

Part = TypeVar("Part")
Made = TypeVar("Made")

LONGEST_REASON = 500  # characters


class ClipFailed(Exception):
    """This clip has no answers, and why."""


@dataclass(frozen=True)
class AskedClip:
    """One clip of a request: a video file, the query it was made for, and the questions about it."""

    content: bytes
    query: str
    questions: tuple[str, ...] = ()


class Answering:
    """Answers requests with one model, one after the other; `batch` is for questions, or for clips that are scored.

    The batch is halved for good when the device runs out of memory.
    """

    def __init__(self, model: ChecklistModel | ScalarModel, batch: int) -> None:
        self.model = model
        self.batch = batch
        self._alone = threading.Lock()

    def results(self, clips: Sequence[AskedClip]) -> list[dict[str, Any]]:
        """What becomes of each clip, in order: {"answers": ...}, {"scores": ...} or {"error": ...}."""
        frames = [self._frames(clip) for clip in clips]  # beside the model's work on another request
        with self._alone:
            if isinstance(self.model, ChecklistModel):
                return [self._answered(self.model, clip, shown) for clip, shown in zip(clips, frames, strict=True)]
            return self._scored(self.model, clips, frames)

    def _frames(self, clip: AskedClip) -> Frames | ClipFailed:
        try:
            return sampled_frames(clip.content, self.model.sampling)
        except UnreadableVideo as error:
            return ClipFailed(f"the video cannot be read: {error}")

    # ---- models that answer questions --------------------------------------------------------------------------------

    def _answered(self, model: ChecklistModel, clip: AskedClip, frames: Frames | ClipFailed) -> dict[str, Any]:
        try:
            if isinstance(frames, ClipFailed):
                raise frames
            features = self._in_memory(lambda: model.encode(frames))
            said = self._in_batches(clip.questions, lambda some: model.answer(features, some))
            asked = enumerate(zip(clip.questions, said, strict=True), start=1)
            return {"answers": [_answer(number, question, given) for number, (question, given) in asked]}
        except ClipFailed as error:
            return _failure(str(error))
        except Exception as error:
            return _failure(_described(error))

    # ---- models that give scores -------------------------------------------------------------------------------------

    def _scored(
        self, model: ScalarModel, clips: Sequence[AskedClip], frames: Sequence[Frames | ClipFailed]
    ) -> list[dict[str, Any]]:
        results: list[dict[str, Any] | None] = [
            _failure(str(shown)) if isinstance(shown, ClipFailed) else None for shown in frames
        ]
        good = [place for place, result in enumerate(results) if result is None]

        def score(places: Sequence[int]) -> Sequence[dict[str, Any]]:
            scores = model.score([frames[place] for place in places], [clips[place].query for place in places])  # type: ignore[misc]
            return [_scores(model, given) for given in _as_many(scores, places)]

        try:
            made = self._in_batches(good, score)
        except Exception:
            made = [self._scored_alone(score, place) for place in good]
        for place, result in zip(good, made, strict=True):
            results[place] = result
        return [result for result in results if result is not None]

    def _scored_alone(self, score: Callable[[Sequence[int]], Sequence[dict[str, Any]]], place: int) -> dict[str, Any]:
        try:
            return self._in_batches([place], score)[0]
        except Exception as error:
            return _failure(_described(error))

    # ---- memory ------------------------------------------------------------------------------------------------------

    def _in_batches(self, parts: Sequence[Part], work: Callable[[Sequence[Part]], Sequence[Made]]) -> list[Made]:
        """The work on all parts, in batches, which are halved when memory runs out."""
        made: list[Made] = []
        while len(made) < len(parts):
            some = parts[len(made) : len(made) + self.batch]
            try:
                made += _as_many(work(some), some)
            except Exception as error:
                if not _is_out_of_memory(error) or len(some) == 1:
                    raise
                self.batch = len(some) // 2
                print(f"out of memory with a batch of {len(some)}; from now on {self.batch}", file=sys.stderr)
                short = True
            else:
                short = False
            if short:  # the error is gone here, and with it what it held in memory
                self.model.free_memory()
        return made

    def _in_memory(self, work: Callable[[], Made]) -> Made:
        """Work that cannot be halved: tried once more with all memory that there is."""
        try:
            return work()
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
        self.model.free_memory()
        return work()


def _as_many(made: Sequence[Made], parts: Sequence[Part]) -> Sequence[Made]:
    if len(made) != len(parts):
        raise RuntimeError(f"the model gave {len(made)} results for {len(parts)}")
    return made


def _is_out_of_memory(error: Exception) -> bool:
    # By name, so that models without torch need no torch: torch.cuda.OutOfMemoryError, torch.OutOfMemoryError.
    return isinstance(error, (OutOfMemory, MemoryError)) or type(error).__name__ == "OutOfMemoryError"


def _answer(number: int, question: str, said: Said) -> dict[str, Any]:
    """One answer. Raises ClipFailed for one that is neither yes nor no: it must never pass for a silent no."""
    word = said.text.strip().casefold()
    if word not in ("yes", "no"):
        raise ClipFailed(f"question {number} ({question[:120]!r}) was answered {said.text[:80]!r}, not yes or no")
    if said.probability is not None and not 0 <= said.probability <= 1:
        raise ClipFailed(f"question {number} ({question[:120]!r}) has the probability {said.probability}")
    return {"answer": word, "probability": said.probability}


def _scores(model: ScalarModel, given: dict[str, float]) -> dict[str, Any]:
    """The scores of one clip; {"error": ...} where one is missing, too many or no number."""
    names = [score.name for score in model.scores]
    if sorted(given) != sorted(names):
        return _failure(f"the model gave the scores {', '.join(sorted(given))} instead of {', '.join(names)}")
    for name in names:
        if not math.isfinite(given[name]):
            return _failure(f"the score {name!r} is {given[name]}")
    return {"scores": {name: float(given[name]) for name in names}}


def _failure(reason: str) -> dict[str, Any]:
    line = " ".join("".join(c if c.isprintable() else " " for c in reason).split())
    return {"error": line[:LONGEST_REASON]}


def _described(error: Exception) -> str:
    if _is_out_of_memory(error):
        return "the device has too little memory for this clip, even alone"
    traceback.print_exception(type(error), error, error.__traceback__)
    return f"the model failed on it ({type(error).__name__}: {error})"
