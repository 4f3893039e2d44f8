"""Pika-style tags in a query: `-camera zoom in`, `-neg a, b`, `-ar 16:9`, `-motion 2`, `-gs 12`, `-fps 24`,
`-seed 5`.

One or two dashes of any kind start a tag, with or without a space after the name. Tags we do not know, and
known ones with a value that makes no sense, stay in the text: they may be words of the user's.
"""

import re
from dataclasses import asdict, dataclass, field

_DASH = r"[-–—−]{1,2}"
_NAMES = {
    "aspect_ratio": r"aspect\s?ratio|aspect|ar",
    "negative": r"negative\s?prompt|(?<!\s)negative|neg",
    "motion": r"motion",
    "guidance_scale": r"guidance\s?scale|guidance|gs",
    "fps": r"fps",
    "seed": r"seed",
    "camera": r"camera|cam",
    # A wish to Pika's bot about its answer; it says nothing about the video.
    "hidden": r"hide",
}
_NAME = "|".join(f"(?P<{kind}>{names})" for kind, names in _NAMES.items())
# A dash inside a word starts no tag (slow-motion), unless a number stands before it (24-ar 16:9), the dashes
# are two (path--ar 16:9), or name and number leave no doubt (sunset-ar 16:9).
_STARTS = (
    r"(?<![^\s\[\]().,;:\"'”])",
    r"(?<=\d)",
    r"(?<=\w)(?=(?:--|—)[A-Za-z])",
    r"(?<=\w)(?=[-–−](?:ar|gs|fps|seed)\s?[:=]?\s?\d)",
)
_TAG = re.compile(rf"(?:{'|'.join(_STARTS)}){_DASH}\s?(?:{_NAME})(?![A-Za-z])", re.IGNORECASE)

_TURN = r"anti[\s-]?clockwise|counter[\s-]?clockwise|clockwise|acw|ccw|cw"
_WAY = rf"in|out|left|right|up|down|around|forward|backward|{_TURN}"
_CAMERA_VALUE = re.compile(
    rf"(?:zoom|pan|rotat|tilt|orbit|truck|dolly|pedestal|roll|static|still|follow)[a-z]*(?:(?:\s+|\s*,\s*)(?:{_WAY})\b)*"
    rf"|(?:{_WAY})\b",
    re.IGNORECASE,
)
_RATIO_VALUE = re.compile(r"(\d{1,4})\s?[:xX/.]\s?(\d{1,4})(?![\d.]*\d)")
_NUMBER_VALUE = re.compile(r"\d{1,6}(?:\.\d{1,6})?(?![\d])")
_SEED_VALUE = re.compile(r"\d{1,24}(?!\d)")
_BEFORE_VALUE = re.compile(r"\s*[:=]?\s*")
_AROUND_NEGATIVE = " \t,.;:[]\"'“”‘’"
# Seeds are kept as signed 64-bit numbers; larger ones wrap around, so that equal seeds stay equal.
_SEED_LIMIT = 2**63


@dataclass(frozen=True)
class Params:
    """The wishes of a query besides its words; None where it has none."""

    aspect_ratio: str | None = None
    camera: str | None = None
    motion: str | None = None
    negative: str | None = None
    fps: float | None = None
    guidance_scale: float | None = None
    seed: int | None = None

    def as_dict(self) -> dict[str, str | float | int | None]:
        return asdict(self)


@dataclass
class _Found:
    values: dict[str, str] = field(default_factory=dict)
    negatives: list[str] = field(default_factory=list)
    cameras: list[str] = field(default_factory=list)


def parse_tags(text: str) -> tuple[str, Params]:
    """The query without its tags, and what the tags say.

    A tag that occurs twice: the later value counts; negatives and camera moves add up. `-neg` reaches to the
    next tag or to the end; a `-neg` of nothing goes without a trace. The text must be clean (see
    cleaning.py).
    """
    found = _Found()
    kept: list[str] = []
    position = 0
    tags = list(_TAG.finditer(text))
    for index, tag in enumerate(tags):
        if tag.start() < position:
            continue
        limit = tags[index + 1].start() if index + 1 < len(tags) else len(text)
        end = _read_value(str(tag.lastgroup), text, tag.end(), limit, found)
        if end is None:
            continue
        kept.append(text[position : tag.start()])
        position = end
    kept.append(text[position:])
    return (_tidy(kept) if len(kept) > 1 else text), _params(found)


def _read_value(kind: str, text: str, start: int, limit: int, found: _Found) -> int | None:
    """Where the value ends; None where there is no value that makes sense, so that the tag stays text."""
    if kind == "hidden":
        return start
    before = _BEFORE_VALUE.match(text, start, limit)
    start = before.end() if before else start
    if kind == "negative":
        negative = text[start:limit].strip(_AROUND_NEGATIVE)
        if negative:
            found.negatives.append(negative)
        return limit
    pattern = {"camera": _CAMERA_VALUE, "aspect_ratio": _RATIO_VALUE, "seed": _SEED_VALUE}.get(kind, _NUMBER_VALUE)
    # Matched on the text up to the next tag, so that a value cannot reach into it.
    value = pattern.match(text[:limit], start)
    if value is None:
        return None
    if kind == "aspect_ratio":
        if int(value[1]) == 0 or int(value[2]) == 0:
            return None
        found.values[kind] = f"{int(value[1])}:{int(value[2])}"
    elif kind == "camera":
        found.cameras.append(re.sub(r"\s+", " ", value[0]).strip().lower())
    else:
        found.values[kind] = value[0]
    return value.end()


def _params(found: _Found) -> Params:
    fps, scale, seed = (found.values.get(kind) for kind in ("fps", "guidance_scale", "seed"))
    return Params(
        aspect_ratio=found.values.get("aspect_ratio"),
        camera=", ".join(dict.fromkeys(found.cameras)) or None,
        motion=found.values.get("motion"),
        negative=", ".join(dict.fromkeys(found.negatives)) or None,
        fps=None if fps is None else float(fps),
        guidance_scale=None if scale is None else float(scale),
        seed=None if seed is None else int(seed) % _SEED_LIMIT,
    )


def _tidy(parts: list[str]) -> str:
    """What stood around the tags, joined, without the separators that they leave hanging."""
    text = ""
    for part in map(str.strip, parts):
        # The full stop before a tag and the one after it are one.
        rest = part.lstrip(" .") if text.endswith(".") and part.startswith(".") else part
        text = f"{text} {rest}".strip()
    text = re.sub(r"\s+([,.;!?\])])", r"\1", text)
    text = re.sub(r"([,;])(?:\s*[,;])+", r"\1", text)
    text = re.sub(r"[,;]\s*(?=\.)", "", text)
    text = re.sub(r"\[\s*\]|\(\s*\)", "", text)
    text = re.sub(r"^[\s,.;:\])]+|(?:\s+[-–—\[(]+|[\s,;:])+$", "", text).strip()
    text = _without_unmatched(text)
    return re.sub(r"\s+", " ", text).strip()


def _without_unmatched(text: str) -> str:
    """Without a bracket at the end or the start whose partner went with a tag ("[a cat -seed 5]")."""
    for opening, closing in ("[]", "()"):
        if text.endswith(closing) and text.count(closing) > text.count(opening):
            text = text[:-1].rstrip(" ,;")
        if text.startswith(opening) and text.count(opening) > text.count(closing):
            text = text[1:].lstrip()
    return text
