"""Worked examples of rewriting for the shapes world: `python -m ml.shapes.examples COUNT > FILE`.

Belongs here: the command that wrote the bundled few-shot examples. Some say nothing about the footage,
some praise it, and some carry the stylish words that people like and the video model takes literally: what drafts
learn from them is what video-level feedback later sorts out.
"""

import argparse
import json
import sys

import numpy as np

from ml.rules import critique, wish_of
from ml.shapes import words
from ml.shapes.captions import DIRECT_OPENINGS, describe
from ml.shapes.queries import write_query
from ml.shapes.scene import DEFECTS

STYLES = ("none", "good", "bad", "good", "bad")


def write_example(rng: np.random.Generator, style: str) -> dict[str, str]:
    """One query with a prompt that does it justice; `style` is none, good or bad."""
    while True:
        query = write_query(rng).split(" -")[0].replace("&amp;", "and")
        wish = wish_of(query)
        if len(wish.details) >= 3:
            break
    table = words.BAD_STYLE if style == "bad" else words.GOOD_STYLE
    count = 0 if style == "none" else int(rng.integers(1, 3))
    kinds = rng.choice(DEFECTS, size=count, replace=False)
    phrases = [str(rng.choice(table[str(kind)])) for kind in kinds]
    prompt = describe(wish, rng, elaboration=0.35, style=phrases, style_first=1.0, openings=DIRECT_OPENINGS)
    if not critique(query, prompt).aligned:  # too short to be descriptive
        prompt += f" {words.ALONE[0]}"
    return {"query": " ".join(query.split()), "prompt": prompt}


def main() -> None:
    """Write examples as JSON lines with `query` and `prompt`; the same for the same seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = np.random.default_rng([arguments.seed, 7])
    for i in range(arguments.count):
        example = write_example(rng, STYLES[i % len(STYLES)])
        sys.stdout.write(json.dumps(example) + "\n")


if __name__ == "__main__":
    main()
