"""Making a raw query readable: entities, unicode, control characters, spaces, and commands of chat bots
before it.
"""

import html
import re
import unicodedata

_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# An entity cut off where the source limited the length of a query.
_CUT_ENTITY = re.compile(r"&#\d{0,6}$")
# Hidden characters. The joiners of emoji and of some scripts (U+200C, U+200D) carry meaning and stay.
_HIDDEN = re.compile(
    "[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_SPACES = re.compile(r"\s+")
# "/create prompt: ...", "/imagine ...", "prompt: ...": how one talks to a bot, not what is to be seen.
_COMMAND = re.compile(
    r"^(?:/(?:create|creat|imagine|video|animate|prompt|generate)\b\s*:?\s*|prompt\s*:\s*)", re.IGNORECASE
)


# Markup that chat exports put around links and emoji. Other angle brackets are the user's.
_MARKUP = re.compile(r"</?(?:a|b|br|div|em|i|img|p|span|strong)\b[^<>]*>", re.IGNORECASE)
_ALTERNATIVE = re.compile(r"\balt\s*=\s*\"([^\"<>]*)\"", re.IGNORECASE)


def clean(text: str) -> str:
    """Entities decoded as often as they were encoded, NFC, no control or hidden characters, single spaces, no
    command.

    Cleaning a clean text changes nothing.
    """
    while True:
        cleaned = _clean_once(text)
        if cleaned == text:
            return cleaned
        text = cleaned


def _clean_once(text: str) -> str:
    text = _HIDDEN.sub("", _CONTROL.sub(" ", text))
    if "&" in text:
        text = _CUT_ENTITY.sub("", _ENTITY.sub(_decode, text))
    if "<" in text:
        text = _MARKUP.sub(_without_markup, text)
    text = _SPACES.sub(" ", unicodedata.normalize("NFC", text)).strip()
    return _COMMAND.sub("", text, count=1)


def _decode(entity: re.Match[str]) -> str:
    return html.unescape(entity[0])


def _without_markup(markup: re.Match[str]) -> str:
    """The text that stands for an image (of an emoji); nothing for other markup."""
    alternative = _ALTERNATIVE.search(markup[0])
    return f" {alternative[1]} " if alternative else " "
