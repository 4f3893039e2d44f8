"""Examine a trained shapes model: `python -m ml.shapes.examine FOLDER`.

How well it films prompts of every style, those in the other model's dialect among them, by motion and size, measured
on fresh scenes with the same seeds for every style. Belongs here: that examination. Does not belong here: the
measuring itself (pixels.py).
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ml.metrics import bootstrap_interval
from ml.shapes import words
from ml.shapes.captions import brief, detailed, footage_phrases
from ml.shapes.dialects import Dialect
from ml.shapes.pixels import answers, measure, pixel_checklist
from ml.shapes.queries import query_of
from ml.shapes.reading import Wish
from ml.shapes.scene import DEFECTS, MOTIONS, Clip, Scene, draw_scene
from ml.shapes.video_models import MODELS, VideoModel

Writer = Callable[[Scene, np.random.Generator], str]

TARGETS = ("color", "shape", "motion")


def good_style(rng: np.random.Generator, dialect: Dialect) -> list[str]:
    """One phrase of praise for each virtue of footage."""
    return [str(rng.choice(dialect.good_style[name])) for name in rng.permutation(DEFECTS)]


def bad_style(rng: np.random.Generator, dialect: Dialect) -> list[str]:
    """Two phrases that the model takes for flaws of the footage."""
    return footage_phrases([str(name) for name in rng.choice(DEFECTS, 2, replace=False)], rng, dialect)


def styles_for(video_model: VideoModel) -> dict[str, Writer]:
    """The styles of prompt to film, by name: the model's own, then the best style of every other model."""

    def best(dialect: Dialect) -> Writer:
        return lambda scene, rng: detailed(scene, rng, complete=True, style=good_style(rng, dialect), dialect=dialect)

    own = video_model.dialect
    return {
        "users' words": query_of,
        "short": lambda scene, rng: brief(scene, rng, dialect=own),
        "detailed": lambda scene, rng: detailed(scene, rng, complete=True, dialect=own),
        "detailed, good style": best(own),
        "detailed, bad style": lambda scene, rng: detailed(
            scene, rng, complete=True, style=bad_style(rng, own), dialect=own
        ),
        **{f"best for {other.name}": best(other.dialect) for other in MODELS.values() if other is not video_model},
    }


def load_pipeline(folder: Path) -> tuple[Any, VideoModel]:
    """The plain pipeline, without its progress bar, and the model of the shapes world that it is one of."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    name = type(pipeline).__name__
    video_model = next((one for one in MODELS.values() if one.pipeline == name), None)
    if video_model is None:
        known = ", ".join(one.pipeline for one in MODELS.values())
        raise SystemExit(f"{folder} holds a {name}, which is no model of the shapes world (those are {known})")
    return pipeline, video_model


def film(
    pipeline: Any,
    arguments: Mapping[str, Any],
    prompts: Sequence[str],
    seeds: Sequence[int],
    batch: int = 16,
) -> list[Clip]:
    """One clip a prompt; `arguments` go to the pipeline's call."""
    import torch

    clips: list[Clip] = []
    for start in range(0, len(prompts), batch):
        rows = slice(start, start + batch)
        frames = pipeline(
            prompt=list(prompts[rows]),
            **arguments,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[rows]],
            output_type="np",
        ).frames
        clips += list((frames * 255).round().astype(np.uint8))
    return clips


def answered(clips: Sequence[Clip], scenes: Sequence[Scene]) -> NDArray[np.float64]:
    """Answers of the pixel checklist, (clips, questions); the background is nobody's wish."""
    wishes = [Wish(s.color, s.shape, s.motion, None if s.motion == "grow" else s.size) for s in scenes]
    return np.array(
        [list(answers(measure(clip), wish).values()) for clip, wish in zip(clips, wishes, strict=True)], float
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=120)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=4242)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    scenes = [draw_scene(rng).clean() for _ in range(arguments.scenes)]
    (pipeline, video_model), checklist = load_pipeline(arguments.folder), pixel_checklist()
    call = {
        **video_model.arguments,
        "num_inference_steps": arguments.steps,
        "guidance_scale": arguments.guidance,
    }
    seeds = [arguments.seed + i for i in range(len(scenes))]
    ids = list(checklist.ids)
    for style, write in styles_for(video_model).items():
        prompts = [write(scene, rng) for scene in scenes]
        yes = answered(film(pipeline, call, prompts, seeds), scenes)
        score = bootstrap_interval(checklist.score(yes))
        line = f"{style:22s} score {score.mean:.2f} [{score.low:.2f}, {score.high:.2f}]  "
        sys.stdout.write(line + " ".join(f"{name} {yes[:, i].mean():.2f}" for i, name in enumerate(ids)) + "\n")
        if style == "detailed":
            _break_down(yes, ids, scenes)
        sys.stdout.flush()


def _break_down(yes: NDArray[np.float64], ids: Sequence[str], scenes: Sequence[Scene]) -> None:
    """Colour, shape and motion by motion and by size."""
    for attribute, values in (("motion", MOTIONS), ("size", tuple(words.USER_SIZE))):
        for value in values:
            rows = [getattr(scene, attribute) == value for scene in scenes]
            if not any(rows):
                continue
            shares = " ".join(f"{name} {yes[rows, ids.index(name)].mean():.2f}" for name in TARGETS)
            sys.stdout.write(f"    {attribute} {value:6s} ({sum(rows)} scenes) {shares}\n")


if __name__ == "__main__":
    main()
