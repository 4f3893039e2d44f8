"""Reading English about the shapes world: what a query asks for, what a prompt says.

Belongs here: finding mentions of colours, shapes, motions, sizes and backgrounds in any text, in captions' words
or in users'. Does not belong here: whether a prompt does its query justice (ml/rules.py).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from ml.shapes import words
from ml.shapes.scene import COLORS, SHAPES

ATTRIBUTES = ("color", "shape", "motion", "size", "background")

_MOTION_SAYINGS = {
    "right": ("to the right", "rightward", "rightwards", "right edge", "toward the right"),
    "left": ("to the left", "leftward", "leftwards", "left edge", "toward the left"),
    "up": ("up", "upward", "upwards", "rises", "toward the top"),
    "down": ("down", "downward", "downwards", "sinks", "descends", "toward the bottom"),
    "still": ("still", "motionless", "without any movement", "no motion"),
    "grow": ("grows", "growing", "expands", "bigger", "grow"),
}
_BACKGROUND_SAYINGS = {
    "dark": ("dark background", "dark backdrop"),
    "light": ("light background", "light backdrop"),
    "striped": ("striped background", "vertical stripes", "striped backdrop"),
}


@dataclass(frozen=True)
class Wish:
    """What a query asks the clip to show; None where it leaves the detail open."""

    color: str | None = None
    shape: str | None = None
    motion: str | None = None
    size: str | None = None
    background: str | None = None

    @property
    def details(self) -> dict[str, str]:
        """Only what is asked for: attribute -> value."""
        return {name: value for name in ATTRIBUTES if (value := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Mention:
    """A stretch of text that names a value of an attribute."""

    attribute: str
    value: str
    start: int
    end: int


def read_wish(query: str) -> Wish:
    """The wish of a query: the first value that it names for each attribute."""
    found: dict[str, str] = {}
    for mention in mentions(query):
        found.setdefault(mention.attribute, mention.value)
    return Wish(**found)


def mentioned(text: str) -> dict[str, set[str]]:
    """All values that a text names, by attribute. Two values of one attribute are a contradiction."""
    values: dict[str, set[str]] = {}
    for mention in mentions(text):
        values.setdefault(mention.attribute, set()).add(mention.value)
    return values


def mentions(text: str) -> list[Mention]:
    """Every mention in the order of the text; of overlapping ones the longest."""
    pattern, meanings = _lexicon()
    return [
        Mention(*meanings[re.sub(r"\s+", " ", match.group().lower())], match.start(), match.end())
        for match in pattern.finditer(text)
    ]


@cache
def _lexicon() -> tuple[re.Pattern[str], Mapping[str, tuple[str, str]]]:
    meanings = {saying.lower(): (attribute, value) for attribute, value, saying in _sayings()}
    longest_first = sorted(meanings, key=lambda saying: (-len(saying), saying))
    alternatives = "|".join(re.escape(saying).replace(r"\ ", r"\s+") for saying in longest_first)
    return re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)", re.IGNORECASE), meanings


def _sayings() -> Iterator[tuple[str, str, str]]:
    for color in COLORS:
        yield "color", color, color
    for shape in SHAPES:
        yield "shape", shape, shape
    for size in words.USER_SIZE:
        yield "size", size, size
    tables = {
        "color": (words.USER_COLOR,),
        "shape": (words.USER_SHAPE, words.CAPTION_FORM),
        "motion": (words.USER_MOTION, words.CAPTION_MOTION, _MOTION_SAYINGS),
        "size": (words.USER_SIZE,),
        "background": (words.USER_BACKGROUND, words.CAPTION_BACKGROUND, _BACKGROUND_SAYINGS),
    }
    for attribute, sources in tables.items():
        for source in sources:
            for value, sayings in source.items():
                for saying in sayings:
                    yield attribute, value, saying
