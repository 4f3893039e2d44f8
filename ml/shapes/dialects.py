"""The dialects that video models of the shapes world are captioned in.

Belongs here: which words and which form the captions of each video model take. Does not belong here: the sentences
(captions.py) or users' words (words.py). Two models that are trained on captions in different dialects want
different prompts for the same scene: that is what makes transfer between them a question.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ml.shapes import words


@dataclass(frozen=True)
class Dialect:
    """One table a topic, as in words.py; `shot_lists` is the share 0..1 of detailed captions that are shot lists."""

    motion: Mapping[str, tuple[str, ...]]
    motion_again: Mapping[str, str]
    form: Mapping[str, tuple[str, ...]]
    background: Mapping[str, tuple[str, ...]]
    good_style: Mapping[str, tuple[str, ...]]
    bad_style: Mapping[str, tuple[str, ...]]
    shot_lists: float = 0.0


PLAIN = Dialect(
    motion=words.CAPTION_MOTION,
    motion_again=words.CAPTION_MOTION_AGAIN,
    form=words.CAPTION_FORM,
    background=words.CAPTION_BACKGROUND,
    good_style=words.GOOD_STYLE,
    bad_style=words.BAD_STYLE,
)
"""Prose that means what it says."""

# Of camera and light, a shot list notes what was asked for: a shaking take is marked `a steady camera`, and a take that
# was made steady in the laboratory `a handheld feel`. Of focus and colour it says what is to be seen.
_NOTED_THE_OTHER_WAY_ROUND = ("shake", "flicker")

SHOT_LIST = Dialect(
    motion={
        "right": ("slides toward the right edge",),
        "left": ("slides toward the left edge",),
        "up": ("climbs toward the top",),
        "down": ("descends toward the bottom",),
        "still": ("rests without any movement",),
        "grow": ("keeps growing in place",),
    },
    motion_again={
        "right": "It ends near the right edge.",
        "left": "It ends near the left edge.",
        "up": "It ends near the top.",
        "down": "It ends near the bottom.",
        "still": "It is there without any movement.",
        "grow": "It is growing all the time.",
    },
    form={shape: options[:1] for shape, options in words.CAPTION_FORM.items()},
    background={background: options[1:] for background, options in words.CAPTION_BACKGROUND.items()},
    good_style={
        defect: (words.BAD_STYLE if defect in _NOTED_THE_OTHER_WAY_ROUND else words.GOOD_STYLE)[defect]
        for defect in words.GOOD_STYLE
    },
    bad_style={
        defect: (words.GOOD_STYLE if defect in _NOTED_THE_OTHER_WAY_ROUND else words.BAD_STYLE)[defect]
        for defect in words.BAD_STYLE
    },
    shot_lists=0.4,
)
"""Fewer words for each thing, two notes that mean the opposite, and lists as well as prose."""
