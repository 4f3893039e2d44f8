"""The unsafe lexicon: finding unsafe words in a text, and taking them out.

Here: matching against `safety_terms.txt`. Not here: scores of classifiers (ml/curation), and judgements by a
language model (resources/judge.py). A lexicon sees words, not meaning: it misses what is implied and is a
floor, not a proof.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_TERMS_FILE = Path(__file__).with_name("safety_terms.txt")
# Phrases of this section are harmless although words in them are not ("killer whale").
_HARMLESS = "harmless"


@dataclass(frozen=True)
class Match:
    """One unsafe term in a text: text[start:end] is what was matched, `term` how the lexicon spells it."""

    term: str
    category: str
    start: int
    end: int


@dataclass(frozen=True)
class _Word:
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class _Term:
    spelling: str
    category: str
    rest: tuple[str, ...]


def find_unsafe(text: str) -> list[Match]:
    """The unsafe terms of the text from left to right, the longest where several start at a word.

    Words are compared whole, case-folded, without accents and hidden characters, in the singular and the
    simple plural; the words of a longer term may be joined by spaces, hyphens or underscores.
    """
    lexicon = _lexicon()
    words = _words(text)
    found: list[Match] = []
    position = 0
    while position < len(words):
        term = _term_at(lexicon, text, words, position)
        if term is None:
            position += 1
            continue
        last = position + len(term.rest)
        if term.category != _HARMLESS:
            found.append(Match(term.spelling, term.category, words[position].start, words[last].end))
        position = last + 1
    return found


def is_unsafe(text: str) -> bool:
    """True where the text holds an unsafe term."""
    return bool(find_unsafe(text))


def remove_unsafe(text: str) -> str:
    """The text without its unsafe terms, with articles, joining words and punctuation left hanging tidied
    away.

    A text without unsafe terms comes back as it is. The result holds no unsafe term.
    """
    while matches := find_unsafe(text):
        for match in reversed(matches):
            text = _cut(text, match.start, match.end)
    return text


def categories() -> tuple[str, ...]:
    """The aspects that the lexicon covers."""
    return tuple(sorted({term.category for terms in _lexicon().values() for term in terms} - {_HARMLESS}))


def _term_at(lexicon: dict[str, tuple[_Term, ...]], text: str, words: Sequence[_Word], position: int) -> _Term | None:
    for term in lexicon.get(words[position].text, ()):  # longest first
        end = position + 1 + len(term.rest)
        if tuple(word.text for word in words[position + 1 : end]) != term.rest:
            continue
        if all(_joined(text, words[at], words[at + 1]) for at in range(position, end - 1)):
            return term
    return None


def _joined(text: str, left: _Word, right: _Word) -> bool:
    return not text[left.end : right.start].strip(" \t\r\n\u00a0-‐‑–_")


# ----------------------------------------------------------------------------------------- the lexicon


@lru_cache(maxsize=1)
def _lexicon() -> dict[str, tuple[_Term, ...]]:
    """{first word: terms that start with it, longest first}."""
    terms: dict[str, list[_Term]] = {}
    for category, spelling in _read_terms(_TERMS_FILE):
        words = [word.text for word in _words(spelling)]
        for last in _with_plurals(words[-1]):
            first, *rest = [*words[:-1], last]
            terms.setdefault(first, []).append(_Term(spelling, category, tuple(rest)))
    # Of equally long terms a harmless one wins.
    return {
        first: tuple(sorted(found, key=lambda term: (-len(term.rest), term.category != _HARMLESS)))
        for first, found in terms.items()
    }


def _read_terms(path: Path) -> Iterator[tuple[str, str]]:
    category = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        entry = line.split("#", 1)[0].strip()
        if entry.startswith("[") and entry.endswith("]"):
            category = entry[1:-1].strip()
        elif entry:
            if not category:
                raise ValueError(f"{path}, line {number}: a term stands before the first [category].")
            for spelling in entry.split(","):
                if not _words(spelling):
                    raise ValueError(f"{path}, line {number}: {spelling!r} holds no word.")
                yield category, spelling.strip()


def _with_plurals(word: str) -> set[str]:
    forms = {word, f"{word}s"}
    if word.endswith(("s", "x", "z", "ch", "sh")):
        forms.add(f"{word}es")
    if word.endswith("y") and len(word) > 2 and word[-2] not in "aeiou":
        forms.add(f"{word[:-1]}ies")
    return forms


# ------------------------------------------------------------------------------------------ words of a
# text

_ASCII_WORD = re.compile(r"[A-Za-z0-9]+")
_WORD = re.compile(r"[^\W_]+")


def _words(text: str) -> list[_Word]:
    """The normalised words with their places in the text as it was given."""
    if text.isascii():
        return [_Word(found[0].lower(), found.start(), found.end()) for found in _ASCII_WORD.finditer(text)]
    characters: list[str] = []
    places: list[int] = []
    for place, character in enumerate(text):
        folded = _fold(character)
        characters.append(folded)
        places.extend([place] * len(folded))
    folded_text = "".join(characters)
    return [
        _Word(found[0], places[found.start()], _end_of(text, places[found.end() - 1]))
        for found in _WORD.finditer(folded_text)
    ]


def _end_of(text: str, place: int) -> int:
    """Past the character and the combining and hidden ones that belong to it."""
    place += 1
    while place < len(text) and not _fold(text[place]):
        place += 1
    return place


@lru_cache(maxsize=4096)
def _fold(character: str) -> str:
    """Compatibility form, case-folded, without accents; nothing for combining and hidden characters."""
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
    return "".join(part for part in decomposed if unicodedata.category(part) not in ("Mn", "Me", "Cf"))


# ------------------------------------------------------------------------------------- tidying after a
# cut

_ARTICLE = re.compile(r"(?:^|(?<=\s))(?:an?|the|his|her|their|its|some|two|three|many|several)\s*$", re.IGNORECASE)
_HANGING = re.compile(
    r"(?:^|(?<=\s))"
    r"(?:an?|the|and|or|with|of|in|on|at|by|from|to|into|for|full of|like|as|very|his|her|their|its)\s*$",
    re.IGNORECASE,
)
_HANGS_ON = re.compile(r"^(?:and|or)\b\s*", re.IGNORECASE)
_STARTS_CLAUSE = re.compile(
    r"(?:$|[,.;:!?)\]]|(?:in|on|at|by|with|from|into|under|over|near|and|or|is|are|while)\b)", re.IGNORECASE
)


def _cut(text: str, start: int, end: int) -> str:
    left, right = text[:start].rstrip(" \t"), text[end:].lstrip(" \t")
    left, right = left.rstrip("-‐‑–_\"'“‘"), right.lstrip("-‐‑–_\"'”’")
    right = right.lstrip(" \t")
    if not left.strip():
        right = _HANGS_ON.sub("", right.lstrip(",.;:!? "), count=1) if right else right
    if _STARTS_CLAUSE.match(right):
        left = _without_hanging(left, _ARTICLE)
    if not right or right[0] in ",.;:!?)]":
        left = _without_hanging(left, _HANGING)
        if left.rstrip().endswith((",", ";", ":")) or not left.strip():
            right = right.lstrip(",;: ")
    left = left.rstrip(" \t")
    if not right:
        return left.rstrip(",;:")
    space = "" if not left or left[-1].isspace() or right[0] in ",.;:!?)]\n" else " "
    return f"{left}{space}{right}"


def _without_hanging(left: str, hanging: re.Pattern[str]) -> str:
    while found := hanging.search(left):
        left = left[: found.start()].rstrip(" \t")
    return left
