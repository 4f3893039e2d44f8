"""What the shapes world's videos are captioned with: truthful English about a scene.

Belongs here: the sentences and shot lists a video model is trained on, from brief to detailed, with or without
words about the footage. Does not belong here: the words of each dialect (dialects.py), users' queries (queries.py).
"""

from collections.abc import Sequence
from enum import Enum
from typing import TypeVar

import numpy as np

from ml.shapes import words
from ml.shapes.dialects import PLAIN, Dialect
from ml.shapes.reading import Wish
from ml.shapes.scene import DEFECTS, Scene

Option = TypeVar("Option")


class Opening(Enum):
    """What a description begins with: the thing to be seen, where it is, or the fact that this is a video."""

    OBJECT = "object"
    BACKGROUND = "background"
    VIDEO = "video"
    CLIP = "clip"


DIRECT_OPENINGS = (Opening.OBJECT, Opening.BACKGROUND)


def caption(scene: Scene, rng: np.random.Generator, dialect: Dialect = PLAIN) -> str:
    """A training caption. It states a random part of the scene; if it speaks of the footage, it is truthful."""
    if scene.amateur:
        style = footage_phrases(scene.defects, rng, dialect) if rng.random() < 0.25 else []
        return brief(scene, rng, certainty=0.93, style=style, dialect=dialect)
    style = footage_phrases(scene.defects, rng, dialect) if rng.random() < 0.6 else []
    if dialect.shot_lists and rng.random() < dialect.shot_lists:
        return shot_list(_stated(scene, rng, complete=False), rng, style=style, dialect=dialect)
    return detailed(scene, rng, style=style, dialect=dialect)


def brief(
    scene: Scene,
    rng: np.random.Generator,
    *,
    certainty: float = 1.0,
    style: Sequence[str] = (),
    dialect: Dialect = PLAIN,
) -> str:
    """One short sentence in canonical words; every detail is stated with probability `certainty`."""
    color, shape, motion = rng.random(3) < certainty
    subject = " ".join(word for word in (scene.color if color else "", scene.shape if shape else "object") if word)
    text = capitalised(with_article(subject))
    if motion:
        text += " " + _pick(rng, dialect.motion[scene.motion])
    if certainty < 1 and rng.random() < 0.3:
        text += f" on {dialect.background[scene.background][0]}"
    return text + (f", {listing(style)}" if style else "") + "."


def detailed(
    scene: Scene,
    rng: np.random.Generator,
    *,
    complete: bool = False,
    style: Sequence[str] = (),
    dialect: Dialect = PLAIN,
) -> str:
    """Several sentences; with `complete`, colour, shape, motion and size are all certain to be named."""
    stated = _stated(scene, rng, complete=complete)
    return describe(stated, rng, elaboration=0.75 if complete else 0.45, style=style, dialect=dialect)


def shot_list(stated: Wish, rng: np.random.Generator, *, style: Sequence[str] = (), dialect: Dialect = PLAIN) -> str:
    """These details as a director notes them: `Subject: large red ring. Movement: ... Setting: ... Notes: ...`."""
    subject = " ".join(word for word in (stated.size, stated.color, stated.shape or "object") if word)
    lines = [f"Subject: {subject}."]
    if stated.motion:
        lines.append(f"Movement: {_pick(rng, dialect.motion[stated.motion])}.")
    if stated.background:
        lines.append(f"Setting: {_pick(rng, dialect.background[stated.background]).removeprefix('a ')}.")
    if style:
        lines.append(f"Notes: {listing(style)}.")
    return " ".join(lines[i] for i in rng.permutation(len(lines)))


def _stated(scene: Scene, rng: np.random.Generator, *, complete: bool) -> Wish:
    color, shape, motion = (complete or rng.random() < 0.93 for _ in range(3))
    size = scene.motion != "grow" and (complete or rng.random() < 0.6)
    return Wish(
        color=scene.color if color else None,
        shape=scene.shape if shape else None,
        motion=scene.motion if motion else None,
        size=scene.size if size else None,
        background=scene.background if rng.random() < 0.65 else None,
    )


def describe(
    stated: Wish,
    rng: np.random.Generator,
    *,
    elaboration: float = 0.45,
    style: Sequence[str] = (),
    style_first: float = 0.25,
    openings: Sequence[Opening] = tuple(Opening),
    dialect: Dialect = PLAIN,
) -> str:
    """Sentences that state just these details, in the words that the video model knows.

    Every further sentence about a detail comes with probability `elaboration`. The phrases of `style` speak about
    the footage, in the first sentence with probability `style_first`, else in the last. `openings` are the ways to
    begin that may be drawn.
    """
    noun = stated.shape or "object"
    subject = " ".join(word for word in (stated.size, stated.color, noun) if word)
    opening = _opening(stated, subject, noun, _pick(rng, openings), rng, dialect)
    sentences = opening + _elaboration(stated, noun, elaboration, rng, dialect)
    if style:
        sentence = f"{_pick(rng, words.STYLE_LEAD)} {listing(style)}."
        sentences.insert(0 if rng.random() < style_first else len(sentences), sentence)
    return " ".join(sentences)


def footage_phrases(defects: Sequence[str], rng: np.random.Generator, dialect: Dialect = PLAIN) -> list[str]:
    """Truthful phrases about the footage: of its defects (at least one of them), or of one to four virtues."""
    if not defects:
        chosen = rng.choice(DEFECTS, size=rng.integers(1, 5), replace=False)
        return [_pick(rng, dialect.good_style[str(name)]) for name in chosen]
    named = [name for name in defects if rng.random() < 0.65] or [_pick(rng, defects)]
    return [_pick(rng, dialect.bad_style[named[i]]) for i in rng.permutation(len(named))]


def _opening(
    stated: Wish, subject: str, noun: str, opening: Opening, rng: np.random.Generator, dialect: Dialect
) -> list[str]:
    moves = _pick(rng, dialect.motion[stated.motion]) if stated.motion else ""
    backdrop = _pick(rng, dialect.background[stated.background]) if stated.background else ""
    object_moves = f"{with_article(subject)} {moves or 'is shown'}"
    match opening:
        case Opening.OBJECT:
            return [capitalised(object_moves) + (f" in front of {backdrop}." if backdrop else ".")]
        case Opening.VIDEO:
            shown = f"The video shows {with_article(subject)}" + (f" on {backdrop}." if backdrop else ".")
            return [shown, f"The {noun} {moves}."] if moves else [shown]
        case Opening.BACKGROUND:
            return [f"Against {backdrop}, {object_moves}." if backdrop else f"{capitalised(object_moves)}."]
        case Opening.CLIP:
            clip = f"This is a clip of {with_article(subject)}" + (f" that {moves}." if moves else ".")
            return [clip, f"Behind it there is {backdrop}."] if backdrop else [clip]


def _elaboration(stated: Wish, noun: str, likely: float, rng: np.random.Generator, dialect: Dialect) -> list[str]:
    sentences = []
    if stated.shape and rng.random() < likely:
        sentences.append(f"The {noun} has {_pick(rng, dialect.form[stated.shape])}.")
    if stated.color and rng.random() < likely:
        sentences.append(f"It keeps its {stated.color} colour in every frame.")
    if stated.motion and rng.random() < likely:
        sentences.append(dialect.motion_again[stated.motion])
    if rng.random() < 0.3:
        sentences.append(_pick(rng, words.ALONE))
    if rng.random() < 0.3:
        sentences.append(_pick(rng, words.FILLER))
    return [sentences[i] for i in rng.permutation(len(sentences))]


def with_article(noun_phrase: str) -> str:
    """`a red ring`, `an object`."""
    return ("an " if noun_phrase[0] in "aeiou" else "a ") + noun_phrase


def capitalised(text: str) -> str:
    """The text with its first letter in upper case and the rest untouched."""
    return text[0].upper() + text[1:]


def listing(phrases: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _pick(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    return options[int(rng.integers(len(options)))]
