"""Where two prompts differ, word by word.

Belongs here: comparing texts. Does not belong here: how a difference is shown (templates).
"""

import re
from difflib import SequenceMatcher
from typing import NamedTuple

MOST_WORDS = 1200
"""Longer texts are shown without marks: comparing takes time that grows with the square of their length."""
_PIECES = re.compile(r"\s+|\w+|[^\w\s]")


class Piece(NamedTuple):
    """A stretch of a text. `own`: the other text does not have it there."""

    text: str
    own: bool


def differences(first: str, second: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces; those of each, joined, are the text. Case counts, white space between words does not."""
    ours, theirs = _PIECES.findall(first), _PIECES.findall(second)
    if max(len(ours), len(theirs)) > MOST_WORDS:
        return [Piece(first, False)], [Piece(second, False)]
    left: list[Piece] = []
    right: list[Piece] = []
    for kind, a, b, c, d in SequenceMatcher(_is_space, ours, theirs, autojunk=False).get_opcodes():
        _add(left, "".join(ours[a:b]), kind != "equal")
        _add(right, "".join(theirs[c:d]), kind != "equal")
    return left, right


def _is_space(piece: str) -> bool:
    return piece.isspace()


def _add(pieces: list[Piece], text: str, own: bool) -> None:
    """Spaces alone are no difference, and neighbours of one kind are one piece."""
    own = own and not text.isspace()
    if pieces and text and pieces[-1].own == own:
        pieces[-1] = Piece(pieces[-1].text + text, own)
    elif text:
        pieces.append(Piece(text, own))
