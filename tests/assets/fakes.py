"""Stand-ins for the big parts (language model, video model, training), so that the whole graph runs in seconds.

They are deterministic, and play by the rules of the shapes world: better policies miss less and choose better style
words; the camera films what canonical words say, guesses the rest, and takes style words at their word. Judge,
pixel checklist, pair selection, evaluation, lake and stores are the real ones.
"""

import json
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ml.fine_tuning import TrainingJob
from ml.rules import refine
from ml.shapes import words
from ml.shapes.reading import ATTRIBUTES, mentions
from ml.shapes.scene import BACKGROUNDS, COLORS, DEFECTS, MOTIONS, SHAPES, SIZES, Scene, render
from resources.language_model import Conversation, Identity, JsonSchema, LanguageModel, Reply, Sampling
from resources.outcome import Outcome
from resources.trainer import Method, OnProgress, TrainingFailed
from resources.video_generator import Clip, VideoGenerator
from vpo_assets.platform import Platform

FLAWED = ("A nice video.", "naked bloody people", "I'm sorry, I cannot do that.", "An object is shown in some place.")
SKILL = {"few-shot": (0.7, 0.1), "sft": (0.25, 0.6), "dpo": (0.05, 0.98)}  # share of flawed, of good style
VALUES: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "motion": MOTIONS,
    "size": SIZES,
    "background": BACKGROUNDS,
}
USERS_WORDS = {
    word
    for table in (words.USER_COLOR, words.USER_SHAPE, words.USER_MOTION)
    for options in table.values()
    for word in options
}


def generator_of(*parts: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32("\0".join(map(str, parts)).encode()))


class FakeLanguageModel:
    """Writes what the judge would write, or something flawed, as its skill and the seed have it."""

    def __init__(self, name: str, asked: Counter[str]) -> None:
        self.name = name
        self.asked = asked
        self.kind = name if name in SKILL else name.split("-")[0]
        self.broken_for: str | None = None

    def identity(self) -> Identity:
        return {"backend": "fake", "model": self.name}

    def generate(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        seeds: Sequence[int],
        *,
        schema: JsonSchema | None = None,
    ) -> list[Outcome[Reply]]:
        self.asked[self.name] += len(conversations)
        return [Reply(self._write(c[-1]["content"], seed)) for c, seed in zip(conversations, seeds, strict=True)]

    def close(self) -> None:
        """Nothing to free."""

    def _write(self, query: str, seed: int) -> str:
        if self.broken_for is not None and self.broken_for in query:
            raise RuntimeError(f"cannot write about {self.broken_for}")
        rng = generator_of(self.name, query, seed)
        flawed, good = SKILL[self.kind]
        if rng.random() < flawed:
            return str(rng.choice([text for text in FLAWED if self.kind != "dpo" or "naked" not in text]))
        table = words.GOOD_STYLE if rng.random() < good else words.BAD_STYLE
        styles = [str(rng.choice(table[name])) for name in rng.choice(DEFECTS, size=2, replace=False)]
        return refine(query, f"Draft {rng.integers(1 << 30)}. Filmed with {' and '.join(styles)}.")


class FakeVideoGenerator:
    """Films the scene that it reads in a prompt, with the renderer of the shapes world."""

    fps = 4.0

    def __init__(self, counts: Counter[str], shaky: float = 0.25) -> None:
        self.counts = counts
        self.shaky = shaky  # share of defects where nothing is said of them
        self.version = 1
        self.before_each: Callable[[int], None] = lambda _: None  # gets the count of clips rendered so far
        self.broken_for: str | None = None

    def identity(self) -> Identity:
        return {"backend": "fake", "version": self.version}

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Outcome[Clip]]:
        return [self._film(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]

    def close(self) -> None:
        """Nothing to free."""

    def _film(self, prompt: str, seed: int) -> Clip:
        self.before_each(self.counts["videos"])
        if self.broken_for is not None and self.broken_for in prompt:
            raise RuntimeError(f"cannot film {self.broken_for}")
        self.counts["videos"] += 1
        rng = generator_of("film", seed, self.version)
        details = {name: str(rng.choice(VALUES[name])) for name in ATTRIBUTES}
        lowered = prompt.lower()
        for mention in mentions(prompt):
            if " ".join(prompt[mention.start : mention.end].lower().split()) not in USERS_WORDS:
                details[mention.attribute] = mention.value
        shaky = [name for name in DEFECTS if rng.random() < self.shaky]
        defects = [
            name
            for name in DEFECTS
            if any(phrase in lowered for phrase in words.BAD_STYLE[name])
            or (name in shaky and not any(phrase in lowered for phrase in words.GOOD_STYLE[name]))
        ]
        return render(Scene(**details, defects=tuple(defects)), rng)


class FakeTrainer:
    """Writes a checkpoint without learning anything."""

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts
        self.jobs: list[TrainingJob] = []
        self.weights: list[float] = [0.1, 0.2]
        self.fails = False

    def train(self, method: Method, job: TrainingJob, on_progress: OnProgress) -> None:
        import pyarrow.parquet as pq
        import torch
        from safetensors.torch import save_file

        self.counts[f"{method} trainings"] += 1
        self.jobs.append(job)
        examples = pq.read_table(job.data).num_rows
        on_progress({"step": 1, "steps": 2, "loss": 2.0})
        (job.work / "checkpoint-1").mkdir(parents=True, exist_ok=True)
        (job.work / "training.log").write_text("loss 2.0")
        if self.fails:
            raise TrainingFailed(f"{method} ended with status 1; the log ends with\nout of memory")
        on_progress({"step": 2, "steps": 2, "loss": 1.0, "rewards/margins": 0.5})
        on_progress({"train_runtime": 1.0})
        save_file({"weight": torch.tensor(self.weights)}, job.output / "model.safetensors")
        curve = [{"loss": 2.0, "step": 1.0}, {"loss": 1.0, "step": 2.0, "rewards/margins": 0.5}, {"train_loss": 1.5}]
        report = {"examples": examples, "too_long": 0, "steps": 2, "seconds": 0.1, "curve": curve}
        (job.output / "training.json").write_text(json.dumps(report))


@dataclass
class FakePlatform(Platform):
    """The platform with the stand-ins; `counts` says what they did."""

    counts: Counter[str] = field(default_factory=Counter)

    @cached_property
    def language_model(self) -> LanguageModel:
        return FakeLanguageModel("few-shot", self.counts)

    @cached_property
    def base_model(self) -> str:
        return "fake-base"

    @cached_property
    def base_model_name(self) -> str:
        return "fake-base 1"

    def policy(self, checkpoint_id: str) -> LanguageModel:
        if checkpoint_id not in self._policies:
            self.checkpoints.load(checkpoint_id)
            self._policies[checkpoint_id] = FakeLanguageModel(checkpoint_id, self.counts)
        return self._policies[checkpoint_id]

    @cached_property
    def trainer(self) -> Any:
        return FakeTrainer(self.counts)

    @cached_property
    def camera(self) -> FakeVideoGenerator:
        return FakeVideoGenerator(self.counts)

    def video_generator(self, target: str, video_model: str | None = None) -> VideoGenerator:
        if video_model is None:
            return self.video_generators[target]
        self.checkpoints.load(video_model)
        return self.aligned_camera

    @cached_property
    def aligned_camera(self) -> FakeVideoGenerator:
        return FakeVideoGenerator(self.counts, shaky=0.05)

    @cached_property
    def video_generators(self) -> Mapping[str, VideoGenerator]:
        return dict.fromkeys(self.profile.targets, self.camera)
