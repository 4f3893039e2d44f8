"""Untrusted text made fit to be looked at: nothing invisible, nothing endless, nothing that a font lacks.

Belongs here: cleaning that every output shares. Does not belong here: the escaping that one output needs
(HTML: page.py, Markdown: tables.py).
"""

import re
from collections.abc import Container

_LINE_BREAKS = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")

# Control characters, lone surrogates, and characters that are invisible but reorder or smuggle text. Joiners
# and left-to-right marks stay: Persian, Hindi and emoji need them.
_HIDDEN = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f\ud800-\udfff]")

_MISSING_GLYPH = "\u25a1"


def readable(text: object, longest: int | None = None) -> str:
    """`text` as a person can read it: hidden characters are shown (NUL as its picture, others by code point),
    line breaks are \\n, and what exceeds `longest` characters is left out and counted.
    """
    content = text if isinstance(text, str) else str(text)
    left_out = 0
    if longest is not None and len(content) > longest:
        left_out = len(content) - longest
        content = content[:longest]
    content = _HIDDEN.sub(_shown, _LINE_BREAKS.sub("\n", content))
    return f"{content}… ({left_out:,} more characters)" if left_out else content


def one_line(text: object, longest: int | None = None) -> str:
    """As `readable`, with all white space folded into single spaces."""
    return " ".join(readable(text, longest).split())


def drawable(text: object, glyphs: Container[int], longest: int | None = None) -> str:
    """As `one_line`, with a box for every character whose code point is not among a font's `glyphs`."""
    line = one_line(text, longest)
    return "".join(character if ord(character) in glyphs else _MISSING_GLYPH for character in line)


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"⟨U+{code:04X}⟩"
