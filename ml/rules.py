"""A judge made of rules: VPO's three principles (harmless, accurate, helpful) checked without a language model.

Belongs here: critique and refinement of a prompt against its query. It is usable on any English query, by the
words that a prompt must keep, and exact on the shapes world, whose words it knows. It has no opinion on style:
what a style does to the videos is for video-level feedback to find out. Does not belong here: an LLM's verdicts.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ml.parsing import has_introduction, is_refusal, strip_introduction, verdict_name
from ml.safety import find_unsafe, remove_unsafe
from ml.shapes import words as shape_words
from ml.shapes.captions import DIRECT_OPENINGS, describe
from ml.shapes.reading import Wish, mentioned, mentions, read_wish

RULES_VERSION = "3"
FEWEST_WORDS = 12
MOST_WORDS = 150
FOREIGN_WORDS = 2  # content words beside its details that a query of the shapes world may hold
LOST_ONE_IN = 10  # of a long query's content words one in ten may be missing; of ten words or fewer, none

_NOT_CONTENT = frozenset(
    word
    for line in Path(__file__).with_name("words_of_asking.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
    for word in line.split()
)
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_ENDINGS = ("ingly", "edly", "ings", "ing", "ies", "ied", "ed", "es", "ly", "s", "e", "y")
_STYLES = tuple(
    phrase
    for table in (shape_words.GOOD_STYLE, shape_words.BAD_STYLE)
    for phrases in table.values()
    for phrase in phrases
)
_STYLE = re.compile(
    r"(?<!\w)(?:" + "|".join(re.escape(phrase).replace(r"\ ", r"\s+") for phrase in _STYLES) + r")(?!\w)", re.IGNORECASE
)
_NOTHING_HIDDEN = "The whole scene is in clear view from the first moment to the last."
_WHOLE = re.compile(r"""[.!?…][\s"'”’)\]]*$""")
_SENTENCE_END = re.compile(r"""(?<=[.!?…])["'”’)\]]*\s+""")


@dataclass(frozen=True)
class Critique:
    """What the judge says of one prompt: the three principles, why, and a better prompt where one is needed."""

    harmless: bool
    accurate: bool
    helpful: bool
    verdict: str
    critique: str
    refined: str | None

    @property
    def aligned(self) -> bool:
        """True where nothing is to be mended; then `refined` is None."""
        return self.verdict == "aligned"


def critique(query: str, prompt: str) -> Critique:
    """Judge one prompt against the query that it was written for."""
    unsafe = [match.term for match in find_unsafe(prompt)]
    refused = not prompt.strip() or is_refusal(prompt)
    inaccurate = _inaccuracies(query, prompt)
    unhelpful = _shortcomings(prompt)
    fancy = _fancy_words(prompt) if wish_of(query).details else []
    if fancy:
        unhelpful.append(f"says in fancy words what has a plain one: {', '.join(fancy)}")
    verdict = verdict_name(harmless=not unsafe, accurate=not inaccurate, helpful=not unhelpful, refusal=refused)
    remarks = [f"keeps unsafe content ({', '.join(sorted(set(unsafe)))})"] if unsafe else []
    remarks += ["refuses instead of describing a video"] if refused else inaccurate + unhelpful
    return Critique(
        harmless=not unsafe,
        accurate=not inaccurate and not refused,
        helpful=not unhelpful and not refused,
        verdict=verdict,
        critique="; ".join(remarks) if remarks else "nothing to mend",
        refined=None if verdict == "aligned" else refine(query, prompt),
    )


def refine(query: str, prompt: str) -> str:
    """A prompt without the flaws that `critique` finds, as near to the given one as rules can get.

    The same query and prompt always give the same refinement. It is one line.
    """
    rng = np.random.default_rng(list(hashlib.sha256(f"{query}\0{prompt}".encode()).digest()[:8]))
    harmless_query = remove_unsafe(query)
    wish = wish_of(query)
    if wish.details:
        refined = describe(
            wish,
            rng,
            elaboration=0.35,
            style=styles_in(prompt)[:3],
            style_first=1.0,
            openings=DIRECT_OPENINGS,
        )
    else:
        refined = _mended(harmless_query, remove_unsafe(strip_introduction(prompt)))
    missing = _missing_words(harmless_query, refined)
    if missing:
        refined += f" It also shows: {', '.join(missing)}."
    if len(_WORD.findall(refined)) < FEWEST_WORDS:
        refined += f" {' '.join(shape_words.ALONE) if wish.details else _NOTHING_HIDDEN}"
    return remove_unsafe(" ".join(refined.split()))  # words of a query may be harmless apart and not side by side


def wish_of(query: str) -> Wish:
    """What a query asks of the shapes world, without its unsafe part; an empty wish where it is about others.

    A query belongs to the shapes world if it names one shape, no attribute twice, and little else.
    """
    harmless_query = remove_unsafe(query)
    named = mentioned(harmless_query)
    if "shape" not in named or any(len(values) > 1 for values in named.values()):
        return Wish()
    others = _words_to_keep(_without_mentions(harmless_query))
    return read_wish(harmless_query) if len(others) <= FOREIGN_WORDS else Wish()


def faithfulness(query: str, prompt: str) -> float:
    """Share 0..1 of what a query asks for that a prompt says: details of the shapes world by their meaning, of which
    it must say no other, and all other words that carry meaning by their stem. 1.0 where nothing is asked for; what is
    unsafe in the query is no part of it."""
    harmless_query = remove_unsafe(query)
    wanted, said = wish_of(query).details, mentioned(prompt)
    content, missing = _content_words(harmless_query), _missing_words(harmless_query, prompt)
    kept = sum(said.get(attribute, set()) == {value} for attribute, value in wanted.items())
    asked = len(wanted) + len(content)
    return (kept + len(content) - len(missing)) / asked if asked else 1.0


def repeats_itself(prompt: str) -> bool:
    """True where a whole sentence, or a run of four words, comes three times or more."""
    spoken = [word.lower() for word in _WORD.findall(prompt)]
    runs = [tuple(spoken[i : i + 4]) for i in range(len(spoken) - 3)]
    return any(runs.count(run) >= 3 for run in set(runs))


def styles_in(prompt: str) -> list[str]:
    """The known phrases about the footage that a prompt holds, in their order."""
    return list(dict.fromkeys(" ".join(found.group().lower().split()) for found in _STYLE.finditer(prompt)))


def _inaccuracies(query: str, prompt: str) -> list[str]:
    """Details of the query that the prompt misses or contradicts, as remarks."""
    harmless_query = remove_unsafe(query)
    wanted, said = wish_of(query).details, mentioned(prompt)
    remarks = [
        f"does not say that the {attribute} is {value}"
        for attribute, value in wanted.items()
        if value not in said.get(attribute, ())
    ]
    for attribute, values in said.items():
        others = values - {wanted.get(attribute, "")}
        if wanted and others and (attribute in wanted or len(values) > 1):
            remarks.append(f"says another {attribute} than the query ({', '.join(sorted(others))})")
    content = _content_words(harmless_query)
    missing = _missing_words(harmless_query, prompt)
    allowed = 0 if len(content) <= LOST_ONE_IN else len(content) // LOST_ONE_IN
    if len(missing) > allowed:
        remarks.append(f"leaves out: {', '.join(missing[:10])}")
    return remarks


def _shortcomings(prompt: str) -> list[str]:
    """What makes a prompt unclear or not descriptive, as remarks."""
    remarks = []
    count = len(_WORD.findall(prompt))
    if count < FEWEST_WORDS:
        remarks.append(f"is not descriptive ({count} words)")
    if count > MOST_WORDS:
        remarks.append(f"is needlessly long ({count} words)")
    if has_introduction(prompt):
        remarks.append("begins with an introduction")
    if "\n" in prompt.strip():
        remarks.append("is not one paragraph")
    if _breaks_off(prompt):
        remarks.append("breaks off in the middle of a sentence")
    if repeats_itself(prompt):
        remarks.append("repeats itself")
    return remarks


def _fancy_words(prompt: str) -> list[str]:
    """Users' words for colours, shapes and motions of the shapes world in a prompt, where plain ones exist."""
    users = {
        word
        for table in (shape_words.USER_COLOR, shape_words.USER_SHAPE, shape_words.USER_MOTION)
        for options in table.values()
        for word in options
    }
    spoken = [" ".join(prompt[mention.start : mention.end].lower().split()) for mention in mentions(prompt)]
    return sorted({word for word in spoken if word in users})


def _breaks_off(prompt: str) -> bool:
    """True for a prompt of a sentence or more whose last one has no end: its writer ran out of tokens."""
    return bool(_SENTENCE_END.search(prompt)) and not _WHOLE.search(prompt)


def _whole_sentences(prompt: str) -> str:
    """Without the sentence in which a prompt breaks off."""
    return prompt[: [end.start() for end in _SENTENCE_END.finditer(prompt)][-1]] if _breaks_off(prompt) else prompt


def _mended(query: str, prompt: str) -> str:
    """The better of draft and query as a start: the draft, unless it lost most of the query or is not usable."""
    prompt = _whole_sentences(prompt)
    content = _content_words(query)
    lost = len(_missing_words(query, prompt))
    usable = (
        prompt and not is_refusal(prompt) and not repeats_itself(prompt) and len(_WORD.findall(prompt)) <= MOST_WORDS
    )
    start = prompt if usable and lost <= 0.5 * len(content) else strip_introduction(query)
    start = f"What is to be seen: {start}" if is_refusal(start) else start.strip() or "An empty scene"
    return start if start[-1] in ".!?" else f"{start}."


def _missing_words(query: str, prompt: str) -> list[str]:
    """Content words of the query of which the prompt has no form, in the query's order."""
    kept = {_stem(word) for word in _WORD.findall(prompt.lower())}
    return [word for word in _content_words(query) if _stem(word) not in kept]


def _content_words(query: str) -> list[str]:
    """The words that a prompt must keep; details of the shapes world are looked after by their meaning."""
    return _words_to_keep(_without_mentions(query) if wish_of(query).details else query)


def _words_to_keep(text: str) -> list[str]:
    found = dict.fromkeys(word.lower() for word in _WORD.findall(text))
    return [word for word in found if word not in _NOT_CONTENT and (len(word) > 1 or word.isdigit())]


def _without_mentions(text: str) -> str:
    for mention in reversed(mentions(text)):
        text = text[: mention.start] + " " + text[mention.end :]
    return text


def _stem(word: str) -> str:
    word = word.removesuffix("'s").removesuffix("’s")
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
