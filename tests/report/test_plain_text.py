"""Untrusted text keeps what can be read and shows what hides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.report.hostile import TEXTS
from vpo_assets.report.plain_text import drawable, one_line, readable


def test_ordinary_text_stays_as_it_is() -> None:
    for text in ("A red ball, 16:9 -neg blur", "two\nlines\tand a tab", "مرحبا بالعالم", "नमस्ते", "👩\u200d🚀"):
        assert readable(text) == text


def test_hidden_characters_are_shown() -> None:
    assert readable("a\x00b\x1bc\x7f") == "a\u2400b\u241bc\u2421"
    assert readable("\u202eab\ud800") == "⟨U+202E⟩ab⟨U+D800⟩"
    assert readable("a\r\nb\rc\u2028d") == "a\nb\nc\nd"


def test_what_is_too_long_is_counted() -> None:
    assert readable("x" * 1210, 10) == "x" * 10 + "… (1,200 more characters)"
    assert readable("x" * 10, 10) == "x" * 10


@given(st.text(st.characters(codec=None), max_size=60))
def test_any_text_can_be_written_and_hides_nothing(text: str) -> None:
    shown = readable(text)
    shown.encode()
    assert not [c for c in shown if (ord(c) < 32 and c not in "\n\t") or 0x202A <= ord(c) <= 0x202E]
    assert "\n" not in one_line(text)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_only_known_glyphs_are_drawn(text: str) -> None:
    assert set(drawable(text, frozenset(map(ord, "ab x")), 50)) <= set("ab x\u25a1")
