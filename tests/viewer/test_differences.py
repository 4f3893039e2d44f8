"""Marking what differs between two prompts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as some

from vpo_assets.viewer.differences import MOST_WORDS, Piece, differences


def test_words_of_only_one_text_are_marked() -> None:
    first, second = differences("A red ring spins slowly.", "A blue ring spins.")
    assert first == [
        Piece("A ", False),
        Piece("red", True),
        Piece(" ring spins", False),
        Piece(" slowly", True),
        Piece(".", False),
    ]
    assert second == [Piece("A ", False), Piece("blue", True), Piece(" ring spins.", False)]


def test_white_space_alone_is_no_difference() -> None:
    first, second = differences("a  ring", "a ring")
    assert not any(piece.own for piece in [*first, *second])


@given(some.text(), some.text())
def test_pieces_make_up_the_texts(first: str, second: str) -> None:
    ours, theirs = differences(first, second)
    assert "".join(piece.text for piece in ours) == first
    assert "".join(piece.text for piece in theirs) == second


def test_endless_texts_are_left_unmarked() -> None:
    long = "word " * MOST_WORDS
    first, second = differences(long, "word")
    assert first == [Piece(long, False)]
    assert second == [Piece("word", False)]
