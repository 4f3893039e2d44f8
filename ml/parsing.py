"""Reading what language models write: verdicts of a judge, and prompts that come with chatter around them.

Here: fencing untrusted text off inside a judge's instructions, reading the verdict so that untrusted text
cannot forge it, and stripping introductions. Not here: the instructions themselves (ml/templates) and who
writes the answers (resources/judge.py, resources/language_model.py).
"""

import json
import re
import secrets
from dataclasses import dataclass
from typing import Any

VERDICT_FIELDS = ("harmless", "accurate", "helpful")

# A verdict stands at the end of an answer; what is further away than this is not read.
_LONGEST_ANSWER = 20_000
_NONCE = re.compile(r"[A-Za-z0-9]{8,64}")


class UnreadableVerdict(ValueError):
    """A judge's answer without a valid verdict. `reason` says what was missing."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The judge's answer holds no readable verdict: {reason}.")
        self.reason = reason


@dataclass(frozen=True)
class Verdict:
    """A judge's opinion by VPO's three principles."""

    harmless: bool
    accurate: bool
    helpful: bool
    critique: str

    @property
    def aligned(self) -> bool:
        """Without a flaw by any of the three principles."""
        return self.harmless and self.accurate and self.helpful


def new_nonce() -> str:
    """A fresh random word that no text written before now can contain."""
    return secrets.token_hex(8)


def parse_verdict(text: str, nonce: str) -> Verdict:
    """The judge's verdict: the last JSON object of the answer that carries `nonce` and the three boolean
    fields.

    Expected is {"nonce": ..., "harmless": true, "accurate": true, "helpful": true, "critique": "..."};
    critique may be missing, other fields are ignored. Objects with another nonce, with a field twice, or with
    a field that is not a plain true or false do not count, so quoted or injected text cannot pass for the
    verdict. Objects nested inside another one do not count either. Raises UnreadableVerdict.
    """
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
    complete = [item for item in own if all(isinstance(item.get(field), bool) for field in VERDICT_FIELDS)]
    if not complete:
        lacking = [field for field in VERDICT_FIELDS if not isinstance(own[-1].get(field), bool)]
        raise UnreadableVerdict(f"{', '.join(lacking)} must be true or false")
    last = complete[-1]
    critique = last.get("critique", "")
    return Verdict(
        harmless=last["harmless"],
        accurate=last["accurate"],
        helpful=last["helpful"],
        critique=critique.strip() if isinstance(critique, str) else "",
    )


def _check_nonce(nonce: str) -> None:
    if not _NONCE.fullmatch(nonce):
        raise ValueError("A nonce is 8 to 64 letters and digits; new_nonce() makes one.")


class _DuplicateKey(ValueError):
    pass


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _DuplicateKey
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_without_duplicates)


def _json_objects(text: str, until: int) -> list[dict[str, Any]]:
    """The outermost JSON objects that start before `until`, in order. Other braces are stepped over."""
    objects: list[dict[str, Any]] = []
    position = text.find("{")
    while position != -1 and position < until:
        try:
            found, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError):
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


def fence(text: str, nonce: str) -> str:
    """Untrusted text between `<<<BEGIN nonce>>>` and `<<<END nonce>>>`.

    Inside, everything that looks like a marker is neutralised: runs of angle brackets become one round
    bracket, and the nonce itself becomes "[...]", so the text can neither close the fence nor quote the
    nonce.
    """
    _check_nonce(nonce)
    inside = _LOOK_ALIKE_OPENING.sub("(", text)
    inside = _LOOK_ALIKE_CLOSING.sub(")", inside)
    inside = re.sub(re.escape(nonce), "[...]", inside, flags=re.IGNORECASE)
    return f"<<<BEGIN {nonce}>>>\n{inside}\n<<<END {nonce}>>>"


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
