"""The rules that a single query must pass, in order; the first one broken is the reason it is dropped."""

import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

from ml.curation.settings import CurationSettings

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
# Links, and files that were attached to the query. A bare "shop.com" may be a sign in the picture.
_URL = re.compile(r"https?:|www\.\w|[\w-]+\.(?:jpe?g|png|gif|mp4|webp)\b", re.IGNORECASE)
_USUAL_PUNCTUATION = frozenset(" .,;:!?'\"’‘“”()[]-–—/&%+*#@$°…|")

Rule = Callable[[str, CurationSettings], bool]


def broken_rule(query: str, settings: CurationSettings) -> str | None:
    """The reason to drop a cleaned query without tags, or None."""
    for reason, breaks in _RULES:
        if breaks(query, settings):
            return reason
    return None


def _too_long(query: str, settings: CurationSettings) -> bool:
    return len(query) > settings.maximum_characters


def _without_letters(query: str, _: CurationSettings) -> bool:
    return not any(character.isalpha() for character in query)


def _has_url(query: str, _: CurationSettings) -> bool:
    return bool(_URL.search(query))


def _blocked(query: str, settings: CurationSettings) -> bool:
    pattern = _phrases(settings.blocked_phrases)
    return pattern is not None and bool(pattern.search(query))


def _too_short(query: str, settings: CurationSettings) -> bool:
    if len(query) < settings.minimum_characters:
        return True
    # Chinese, Japanese and Thai write words without spaces, so words cannot be counted there.
    return len(_WORD.findall(query)) < settings.minimum_words and query.isascii()


def _special_characters(query: str, settings: CurationSettings) -> bool:
    special = sum(
        not (character.isalnum() or character in _USUAL_PUNCTUATION) for character in query if ord(character) < 0x300
    )
    return special > settings.special_character_share * len(query)


def _repeated_words(query: str, settings: CurationSettings) -> bool:
    words = [word.casefold() for word in _WORD.findall(query)]
    run = 1
    for before, word in pairwise(words):
        run = run + 1 if word == before else 1
        if run >= settings.repeated_in_a_row:
            return True
    return len(words) >= 6 and Counter(words).most_common(1)[0][1] > settings.repeated_word_share * len(words)


_RULES: tuple[tuple[str, Rule], ...] = (
    ("too_long", _too_long),
    ("no_letters", _without_letters),
    ("url", _has_url),
    ("blocked_phrase", _blocked),
    ("too_short", _too_short),
    ("special_characters", _special_characters),
    ("repeated_words", _repeated_words),
)
RULE_REASONS = tuple(reason for reason, _ in _RULES)


@lru_cache(maxsize=8)
def _phrases(phrases: tuple[str, ...]) -> re.Pattern[str] | None:
    if not phrases:
        return None
    return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, phrases)) + r")(?!\w)", re.IGNORECASE)
