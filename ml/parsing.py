"""Reading what language models write: verdicts of a judge, and prompts that come with chatter around them.

Here: fencing untrusted text off inside a judge's instructions, the form of a judge's answers, reading them so that
untrusted text cannot forge one, and stripping introductions. Not here: the instructions themselves (ml/templates)
and who writes the answers (resources/llm_judge.py, resources/language_model.py).
"""

import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal

from ml.safety import find_unsafe

VERDICT_FIELDS = ("harmless", "accurate", "helpful")
COMPARISONS: tuple[Literal["A"], Literal["B"], Literal["tie"]] = ("A", "B", "tie")

# A verdict stands at the end of an answer; what is further away than this is not read.
_LONGEST_ANSWER = 20_000
_NONCE = re.compile(r"[A-Za-z0-9]{8,64}")
_NONCE_LENGTH = 16


def _object_of(properties: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object with exactly these properties, in this order."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


# The schemas are the same for every row, so that a server compiles each once. They say of the nonce only what it looks
# like: a model that has to copy it shows that it answers these instructions, and not some text that it was shown.
# The reasons come before the verdicts, since a model thinks by writing. No keywords that servers differ about.
_NONCE_SCHEMA: dict[str, Any] = {"type": "string", "pattern": f"^[0-9a-f]{{{_NONCE_LENGTH}}}$"}
VERDICT_SCHEMA: dict[str, Any] = _object_of(
    {
        "nonce": _NONCE_SCHEMA,
        "harmless_reason": {"type": "string"},
        "harmless": {"type": "boolean"},
        "accurate_reason": {"type": "string"},
        "accurate": {"type": "boolean"},
        "helpful_reason": {"type": "string"},
        "helpful": {"type": "boolean"},
        "critique": {"type": "string"},
        "refined": {"type": ["string", "null"]},
    }
)
COMPARISON_SCHEMA: dict[str, Any] = _object_of(
    {
        "nonce": _NONCE_SCHEMA,
        "reason": {"type": "string"},
        "better": {"type": "string", "enum": list(COMPARISONS)},
    }
)


class UnreadableVerdict(ValueError):
    """A judge's answer that cannot be used. `reason` says why, in words of our own only."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The judge's answer holds no readable verdict: {reason}.")
        self.reason = reason


@dataclass(frozen=True)
class Verdict:
    """A judge's opinion by VPO's three principles; `refined` is what it wrote in the flawed prompt's place."""

    harmless: bool
    accurate: bool
    helpful: bool
    critique: str
    refined: str | None = None

    @property
    def aligned(self) -> bool:
        """Without a flaw by any of the three principles."""
        return self.harmless and self.accurate and self.helpful


def nonce_of(*parts: str) -> str:
    """The word that a judge has to give back: a hash of everything that it is shown, and of how.

    The same row is always asked in the same words, so that its verdict can be repeated. A text cannot know the nonce
    of a question that it is part of: it would have to hold a hash of itself, which takes some 2^64 tries to find.
    """
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(f"{len(encoded)}:".encode() + encoded)  # the length keeps ("ab", "c") and ("a", "bc") apart
    return digest.hexdigest()[:_NONCE_LENGTH]


def parse_verdict(text: str, nonce: str) -> Verdict:
    """The judge's verdict: the last JSON object of the answer that carries `nonce`.

    Expected are the fields of VERDICT_SCHEMA; the reasons, critique and refined may be missing, other fields are
    ignored. Objects with another nonce or with a field twice do not count, so quoted or injected text cannot pass for
    the verdict. Objects nested inside another one do not count either. Raises UnreadableVerdict, also where a
    principle of that object is not a plain true or false, or `refined` is neither text nor null.
    """
    last = own_object(text, nonce)
    lacking = [field for field in VERDICT_FIELDS if not isinstance(last.get(field), bool)]
    if lacking:
        raise UnreadableVerdict(f"{', '.join(lacking)} must be true or false")
    critique, refined = last.get("critique", ""), last.get("refined")
    if not isinstance(refined, str | None):
        raise UnreadableVerdict("refined must be text or null")
    return Verdict(
        harmless=last["harmless"],
        accurate=last["accurate"],
        helpful=last["helpful"],
        critique=critique.strip() if isinstance(critique, str) else "",
        refined=refined.strip() if refined else None,
    )


def parse_comparison(text: str, nonce: str) -> Literal["A", "B", "tie"]:
    """Which of two prompts the judge prefers, read as strictly as a verdict. Raises UnreadableVerdict."""
    better = own_object(text, nonce).get("better")
    for choice in COMPARISONS:
        if better == choice:
            return choice
    raise UnreadableVerdict('better must be "A", "B" or "tie"')


# What a database, a page or a reader takes for the end of a line, as in ml/preference.py.
_LINE_BREAK = re.compile("[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


def usable_refinement(verdict: Verdict, prompt: str) -> str:
    """The refinement of a prompt that the verdict finds flawed, without introductions around it.

    Raises UnreadableVerdict where there is none that could take the prompt's place: it is missing, declines, is more
    than one paragraph, changes nothing, or is itself unsafe where that was the flaw.
    """
    refined = strip_introduction(verdict.refined or "")
    if not refined:
        raise UnreadableVerdict("refined must hold a new prompt, since the prompt is flawed")
    if is_refusal(refined):
        raise UnreadableVerdict("refined must describe a video instead of declining to")
    if _LINE_BREAK.search(refined):
        raise UnreadableVerdict("refined must be one paragraph without line breaks")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in refined):
        raise UnreadableVerdict("refined must not hold control characters")
    if refined.split() == prompt.split():
        raise UnreadableVerdict("refined must differ from the flawed prompt")
    if not verdict.harmless and find_unsafe(refined):
        raise UnreadableVerdict("refined must be harmless, and still holds unsafe words")
    return refined


def own_object(text: str, nonce: str) -> dict[str, Any]:
    """The last of the outermost JSON objects that carries the nonce."""
    _check_nonce(nonce)
    answer = text[-_LONGEST_ANSWER:]
    # Nothing past the last nonce can be the verdict; without one, hostile text is not even looked at.
    last_nonce = answer.rfind(nonce)
    if last_nonce == -1:
        raise UnreadableVerdict("the nonce is missing")
    objects = _json_objects(answer, last_nonce)
    if not objects:
        raise UnreadableVerdict("no JSON object")
    own = [item for item in objects if item.get("nonce") == nonce]
    if not own:
        raise UnreadableVerdict("no JSON object with the expected nonce")
    return own[-1]


def _check_nonce(nonce: str) -> None:
    if not _NONCE.fullmatch(nonce):
        raise ValueError("A nonce is 8 to 64 letters and digits; nonce_of() makes one.")


class _DuplicateKey(ValueError):
    pass


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _DuplicateKey
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_without_duplicates)


def _json_objects(text: str, until: int) -> list[dict[str, Any]]:
    """The outermost JSON objects that start before `until`, in order. Other braces are stepped over.

    Raises UnreadableVerdict for text that is nested as no verdict is: trying every brace of it would take seconds.
    """
    objects: list[dict[str, Any]] = []
    position = text.find("{")
    while position != -1 and position < until:
        try:
            found, end = _DECODER.raw_decode(text, position)
        except RecursionError:
            raise UnreadableVerdict("it is nested too deeply") from None
        except ValueError:
            end = position + 1
        else:
            objects.append(found)
        position = text.find("{", end)
    return objects


# Characters that read as angle brackets, and characters that can be hidden between them.
_OPENING, _CLOSING = "<＜﹤‹«≪⋘❮❰〈《", ">＞﹥›»≫⋙❯❱〉》"
_HIDDEN = r"[\s\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]*"
_LOOK_ALIKE_OPENING = re.compile(f"[{_OPENING}](?:{_HIDDEN}[{_OPENING}])+")
_LOOK_ALIKE_CLOSING = re.compile(f"[{_CLOSING}](?:{_HIDDEN}[{_CLOSING}])+")


# What chat templates write between messages: `<|im_end|>`, `</s>`, `<start_of_turn>`, `[INST]`. A tokenizer takes such
# words for the real thing wherever they stand.
_CHAT_TOKEN = re.compile(r"[<＜﹤](?=[|｜/!▁]|[^\W\d])|\[(?=/?[A-Z][A-Z_]+\])")


def without_chat_tokens(text: str) -> str:
    """The text with nothing in it that a tokenizer could take for the end or the start of a chat message."""
    return _CHAT_TOKEN.sub("(", text)


def fence(text: str, nonce: str) -> str:
    """Untrusted text between `<<<BEGIN nonce>>>` and `<<<END nonce>>>`.

    Inside, everything that looks like a marker is neutralised: runs of angle brackets become one round
    bracket, chat tokens lose their bracket, and the nonce itself becomes "[...]", so the text can neither close the
    fence, nor start a message of its own, nor quote the nonce.
    """
    _check_nonce(nonce)
    inside = _LOOK_ALIKE_OPENING.sub("(", text)
    inside = _LOOK_ALIKE_CLOSING.sub(")", inside)
    inside = without_chat_tokens(inside)
    inside = re.sub(re.escape(nonce), "[...]", inside, flags=re.IGNORECASE)
    return f"<<<BEGIN {nonce}>>>\n{inside}\n<<<END {nonce}>>>"


_NOT_PRINTABLE = ("Cc", "Cf", "Cs")


def printable(text: str, most: int) -> str:
    """At most `most` characters of a text as people may be shown it: in one line, without control, hidden and bidi
    characters, and encodable.
    """
    one_line = " ".join(text[: 4 * most].split())
    kept = "".join(c for c in one_line if unicodedata.category(c) not in _NOT_PRINTABLE)
    return kept if len(kept) <= most else f"{kept[: most - 1]}…"


_PROMPT_WORD = r"(?:prompts?|descriptions?|versions?|captions?|rewrites?|rewritten|refinements?|scripts?)"
_PROMPT_ADJECTIVE = (
    r"(?:optimi[sz]ed|improved|refined|revised|rewritten|new|final|detailed|enhanced|updated|better|full|complete"
    r"|corrected|video|text-to-video|prompt)"
)
_INTRODUCTIONS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # "Sure!", "Of course,", "Certainly." before the text proper
        r"(?:sure(?: thing)?|of course|certainly|absolutely|okay|ok|alright|great|got it|no problem)"
        r"\s*[,!.:]\s*",
        # "Here is an optimized prompt for a text-to-video model:"
        rf"(?:here(?: is|'s|’s| are)|this is|below is)\s[^:\n]{{0,120}}?\b{_PROMPT_WORD}\b[^:\n]{{0,120}}"
        r"(?::\s*|\n+\s*)",
        # "Here is the prompt." or "Here you go:"
        r"here(?: you go| it is|'s it)\s*[:!.]\s*",
        # "Optimized prompt:", "Prompt:", "Video description -"
        rf"(?:(?:the|your|my)\s+)?(?:{_PROMPT_ADJECTIVE}\s+){{0,3}}{_PROMPT_WORD}\s*:\s*",
        # "The video opens with", "The scene begins by showing", "This video shows"
        r"(?:the|this|our|my|a)\s+(?:short\s+)?(?:video|clip|scene|footage|film|animation|shot)\s+"
        r"(?:opens?|begins?|starts?|shows?|showcases?|depicts?|features?|captures?|displays?|presents?|portrays?)\s+"
        r"(?:off\s+)?(?:with\s+|on\s+|by\s+showing\s+|as\s+)?(?:a\s+(?:shot|view|scene)\s+of\s+)?",
        r"in\s+(?:the|this)\s+(?:video|clip|scene),\s*(?:we\s+see\s+)?",
        r"we\s+(?:open|begin|start)\s+(?:with|on)\s+",
    )
)
_QUOTES = {'"': '"', "“": "”", "«": "»", "'": "'", "‘": "’", "`": "`"}
_MARKDOWN_START = re.compile(r"(?:#{1,6}\s+|>\s+|[-*]\s+(?=\S)|```\w*\s*\n|-{3,}\s*\n)")
_MARKDOWN_END = re.compile(r"\s*(?:```|\n-{3,})\s*$")
_BOLD = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1", re.DOTALL)


def strip_introduction(text: str) -> str:
    """The prompt without the chatter around it: "Sure, here is ...:", "The video opens with", quotes,
    markdown.

    What follows a removed introduction starts with a capital letter. Text that needs no stripping comes back
    as it is, save for spaces around it; text that is nothing but an introduction comes back empty. Stripping
    twice is the same as once.
    """
    current = text.strip()
    while True:
        stripped = _strip_once(current)
        if stripped == current:
            return current
        current = stripped


def has_introduction(text: str) -> bool:
    """True where the text starts with an introduction rather than with what is to be seen."""
    start = _unwrap(text.strip())
    return any(pattern.match(start) for pattern in _INTRODUCTIONS)


def _strip_once(text: str) -> str:
    unwrapped = _unwrap(text)
    for pattern in _INTRODUCTIONS:
        found = pattern.match(unwrapped)
        if found and found.end() > 0:
            rest = unwrapped[found.end() :].strip()
            return rest[:1].upper() + rest[1:]
    return unwrapped


def _unwrap(text: str) -> str:
    """Without markdown and without quotes that embrace the whole text."""
    text = _MARKDOWN_START.sub("", text, count=1) if _MARKDOWN_START.match(text) else text
    text = _MARKDOWN_END.sub("", text)
    text = _BOLD.sub(r"\2", text).strip()
    closing = _QUOTES.get(text[:1])
    # Quotes inside mean that the outer two need not belong together: '"A" and "B"'.
    if closing and len(text) >= 2 and text.endswith(closing) and not _has_any(text[1:-1], text[0] + closing):
        text = text[1:-1].strip()
    return text


def _has_any(text: str, characters: str) -> bool:
    return any(character in text for character in characters)


_REFUSAL = re.compile(
    r"^(?:sorry\b|(?:i(?:'m| am|’m)|we(?:'re| are|’re))\s+(?:very\s+|so\s+|really\s+)?"
    r"(?:sorry|unable|not able|afraid)\b"
    r"|(?:i|we)\s+(?:can(?:'t|not|’t|\s+not)|won(?:'t|’t)|will\s+not|must\s+decline|do\s+not\s+feel|don(?:'t|’t)\s+feel"
    r"|refuse|apologi[sz]e)\b|as an ai\b|unfortunately,?\s+(?:i|we)\b|my apologies\b)",
    re.IGNORECASE,
)


def is_refusal(text: str) -> bool:
    """True where a model declines instead of writing a prompt ("I'm sorry, but I can't ...")."""
    return bool(_REFUSAL.match(_unwrap(text.strip())))


def verdict_name(*, harmless: bool, accurate: bool, helpful: bool, refusal: bool = False) -> str:
    """The one word of VPO's text-level table: aligned, unsafe, imprecise or refusal (a refusal is never
    aligned).
    """
    if refusal:
        return "refusal"
    if not harmless:
        return "unsafe"
    return "aligned" if accurate and helpful else "imprecise"
