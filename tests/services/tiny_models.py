"""Models small enough for tests that are served as the real ones are: `--adapter tests/services/tiny_models.py:NAME`.

Their folder (`--model`) is where they note each call (calls.jsonl) and where tests tell them how to behave
(behaviour.json): `most`, what fits into memory at once.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from services.visionreward.interface import (
    CannotStart,
    ChecklistModel,
    Frames,
    OutOfMemory,
    Said,
    Sampling,
    ScalarModel,
    Score,
    Start,
)

COLORS = ("red", "green", "blue")


class Notebook:
    """What a model in another process was called with."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "calls.jsonl"
        behaviour = folder / "behaviour.json"
        self.behaviour: dict[str, Any] = json.loads(behaviour.read_text()) if behaviour.is_file() else {}

    def note(self, what: str, **values: Any) -> None:
        """Write one call down."""
        with self.file.open("a") as stream:
            stream.write(json.dumps({"what": what, **values}) + "\n")

    def calls(self, what: str) -> list[dict[str, Any]]:
        """All calls of a kind so far."""
        lines = self.file.read_text().splitlines() if self.file.is_file() else []
        return [call for line in lines if (call := json.loads(line))["what"] == what]

    def check_memory(self, parts: int) -> None:
        """Run out of memory as the behaviour says."""
        if parts > self.behaviour.get("most", parts):
            raise OutOfMemory


def _notebook(start: Start) -> Notebook:
    if not Path(start.model).is_dir():
        raise CannotStart(f"{start.model} is no folder")
    return Notebook(Path(start.model))


class ColorAnswers(ChecklistModel):
    """Says yes to a question that names the clip's strongest colour; "perhaps" to one that has that word in it."""

    sampling = Sampling(per_second=1.0, most=24)

    def load(self) -> None:
        self.notes = _notebook(self.start)

    def encode(self, frames: Frames) -> Any:
        self.notes.note("encode", shape=frames.shape)
        return frames.mean(axis=(0, 1, 2))

    def answer(self, features: Any, questions: Sequence[str]) -> list[Said]:
        self.notes.note("answer", questions=list(questions))
        self.notes.check_memory(len(questions))
        return [self._said(features, question) for question in questions]

    def free_memory(self) -> None:
        self.notes.note("free_memory")

    def _said(self, means: Any, question: str) -> Said:
        if "perhaps" in question:
            return Said("Perhaps")
        named = [color for color in COLORS if re.search(rf"\b{color}\b", question)]
        share = sum(float(means[COLORS.index(color)]) for color in named) / max(float(means.sum()), 1.0)
        return Said("Yes" if share > 0.5 else "NO ", share)


class ColorScores(ScalarModel):
    """Scores how bright a clip is and how red; cannot stand the query "explode"."""

    sampling = Sampling(per_second=2.0, most=8)
    scores = (
        Score("brightness", 0, 255, weight=0.01, text="how bright it is"),
        Score("redness", -1, 1, weight=2.0),
    )

    def load(self) -> None:
        self.notes = _notebook(self.start)

    def score(self, clips: Sequence[Frames], queries: Sequence[str]) -> list[dict[str, float]]:
        self.notes.note("score", shapes=[clip.shape for clip in clips], queries=list(queries))
        self.notes.check_memory(len(clips))
        if "explode" in queries:
            raise RuntimeError("what a query")
        return [self._scores(clip, query) for clip, query in zip(clips, queries, strict=True)]

    def _scores(self, clip: Frames, query: str) -> dict[str, float]:
        means = clip.mean(axis=(0, 1, 2))
        redness = float(means[0] - means[1:].max()) / 255
        bright = 1000.0 if query == "too bright" else float(clip.mean())
        return {"brightness": bright, "redness": redness if "red" in query else -redness}
