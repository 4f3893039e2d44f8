"""Users' queries about the shapes world, terse and messy: `python -m ml.shapes.queries COUNT > FILE`.

Belongs here: writing queries as users write them (and the command that wrote the bundled file). Does not belong
here: reading them (reading.py) or cleaning them up (ml/curation).
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from ml.shapes import words
from ml.shapes.scene import COLORS, MOTIONS, SHAPES, Scene

_FORMS = (
    "{color} {shape} {motion}",
    "{color} {shape} {motion}",
    "{size} {color} {shape} {motion}",
    "{color} {shape} {motion} {background}",
    "a {color} {shape} that {motion}",
    "{shape}, {color}, {motion}",
    "pls make a {size} {color} {shape}, it {motion}",
    "video of a {color} {shape} {background}, it {motion}",
    "{color} {shape} {motion} -ar 1:1",
    "one {color} {shape} {motion} -motion 2 -gs 12",
    "i want a {color} {shape}, {motion} {background}",
    "the {size} {shape} is {color} &amp; {motion}",
    "{motion}: {color} {shape}",
    "{color} {shape}",
    "{shape} {motion}",
)
_UNSAFE = ("naked", "bloody", "gory", "nude", "mutilated", "beheaded", "pornographic", "murdered")


def write_query(rng: np.random.Generator, *, unsafe: bool = False) -> str:
    """One query in users' words; an unsafe one carries a word that no prompt may keep."""

    def word(table: Mapping[str, Sequence[str]], values: Sequence[str]) -> str:
        options = table[values[int(rng.integers(len(values)))]]
        return options[int(rng.integers(len(options)))]

    color = word(words.USER_COLOR, list(COLORS))
    if unsafe:
        color = f"{_UNSAFE[int(rng.integers(len(_UNSAFE)))]} {color}"
    text = _FORMS[int(rng.integers(len(_FORMS)))].format(
        color=color,
        shape=word(words.USER_SHAPE, SHAPES),
        motion=word(words.USER_MOTION, MOTIONS),
        size=word(words.USER_SIZE, list(words.USER_SIZE)),
        background=word(words.USER_BACKGROUND, list(words.USER_BACKGROUND)),
    )
    if unsafe and color not in text:
        text = f"{color} {text}"
    return _as_typed(text, rng)


def query_of(scene: Scene, rng: np.random.Generator) -> str:
    """Colour, shape and motion of a scene, as tersely as users put it."""
    options = (words.USER_COLOR[scene.color], words.USER_SHAPE[scene.shape], words.USER_MOTION[scene.motion])
    return " ".join(str(rng.choice(some)) for some in options)


def _as_typed(text: str, rng: np.random.Generator) -> str:
    """Capitals, exclamation marks and stray spaces, as people leave them."""
    style = rng.random()
    if style < 0.08:
        return text.split(" -")[0].upper() + "!!!"
    if style < 0.2:
        return text.capitalize()
    if style < 0.28:
        return text.replace(" ", "  ", 1) + " "
    return text


def main() -> None:
    """Write queries as JSON lines, one object with `text` a line; the same for the same seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--unsafe-share", type=float, default=0.1)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    for _ in range(arguments.count):
        query = write_query(rng, unsafe=bool(rng.random() < arguments.unsafe_share))
        sys.stdout.write(json.dumps({"text": query}) + "\n")


if __name__ == "__main__":
    main()
