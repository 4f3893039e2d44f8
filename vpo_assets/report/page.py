"""The evaluation report: one HTML page that needs nothing beside itself.

Belongs here: choosing what the page says, its sentences, and making all of it safe to show. Does not belong
here: layout (page.html), the cells of its tables (grids.py), and reading the lake.
"""

import base64
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vpo_assets.report import grids, published
from vpo_assets.report.data import Clip, Estimate, Example, FStatistic, ReportData
from vpo_assets.report.plain_text import readable

LONGEST_TEXT = 4000
_TINY_CLIP = 160
_KNOWN_VERDICTS = ("aligned", "unsafe", "imprecise", "refusal")


def render_report(data: ReportData) -> str:
    """The report as one HTML document: styles, pictures and clips inside, nothing loaded from anywhere.

    All text is untrusted: it is escaped, hidden characters are shown, and what exceeds 4,000 characters is cut.
    A content security policy forbids every script but the page's own filter box.
    """
    made_at = data.made_at.astimezone(UTC) if data.made_at.tzinfo else data.made_at
    return _environment().get_template("page.html").render(
        data=data,
        made_at=f"{made_at:%d %B %Y, %H:%M}{' UTC' if data.made_at.tzinfo else ''}",
        headlines=_headlines(data),
        text_level=grids.text_level_grid(data.text_level),
        video_level=grids.video_level_grid(data.video_level),
        dimensions=grids.dimension_grid(data.video_level),
        published_video_level=grids.published_video_level_grid(),
        source=published.SOURCE,
        score_chart=grids.score_chart(data.video_level),
        gain_chart=grids.gain_chart(data.gains),
        f_statistic=data.f_statistic and _f_figure(data.f_statistic),
        f_sentence=f_sentence(data.f_statistic),
        people=grids.people_grid(data.people),
        prompts=grids.prompt_grid(data.prompts),
        safety=grids.safety_grid(data.safety),
        pairs=grids.pair_grid(data.pair_counts),
        examples=[_shown_example(example) for example in data.examples],
    )  # fmt: skip


def f_sentence(statistic: FStatistic | None) -> str:
    """What the F statistic means for the video-level pairs, in plain words."""
    if statistic is None or math.isnan(statistic.f):
        return (
            "Whether the reward can tell prompts apart is not known: that takes at least two prompts of the same "
            "query, and at least two videos of the same prompt."
        )
    if math.isinf(statistic.f):
        return "Seeds make no difference to the score at all: every difference comes from the prompt."
    if statistic.f <= 1:
        return (
            "Two prompts of the same query differ in score no more than two seeds of the same prompt. Pairs chosen "
            "by this reward are noise: use more seeds per prompt, or a reward that sees more."
        )
    if math.isfinite(statistic.low) and statistic.low > 1:
        return (
            f"The score varies {statistic.f:.1f} times as much between prompts of a query as chance in the seeds "
            "would make it: the reward sees differences between prompts, so video-level pairs carry information."
        )
    return (
        "The score varies somewhat more between prompts than between seeds, but this is not clearly above 1: many "
        "video-level pairs may be noise. More seeds per prompt or more queries would settle it."
    )


def _f_figure(statistic: FStatistic) -> tuple[str, str]:
    if math.isinf(statistic.f):
        return "∞", ""
    return grids.written(Estimate(statistic.f, statistic.low, statistic.high))


@dataclass(frozen=True)
class _Headline:
    label: str
    value: str
    interval: str
    comment: str
    good: bool | None


def _headlines(data: ReportData) -> list[_Headline]:
    """The figures a hurried reader came for."""
    found = []
    for row in data.gains:
        if row.method == "vpo" and row.against in ("original", "sft"):
            value, interval = grids.written(Estimate(row.mean, row.low, row.high), sign=True)
            clear = row.low > 0
            comment = "interval clear of 0" if clear else "below 0" if row.high < 0 else "not clear of 0"
            label = f"gain of VPO over {grids.within_sentence(grids.method_name(row.against))}"
            found.append(_Headline(label, value, interval, comment, clear))
    shares = {row.method: row.unsafe for row in data.text_level}
    if "vpo" in shares:
        value, interval = grids.written(shares["vpo"], 1)
        before = f"original query: {grids.written(shares['original'], 1)[0]} %" if "original" in shares else ""
        found.append(_Headline("unsafe prompts, VPO", f"{value} %", interval, before, None))
    if data.f_statistic is not None:
        value, interval = _f_figure(data.f_statistic)
        clear = data.f_statistic.low > 1 or math.isinf(data.f_statistic.f)
        comment = "prompts matter beyond chance" if clear else "not clearly above 1"
        found.append(_Headline("F, prompts against seeds", value, interval, comment, clear))
    return found


@dataclass(frozen=True)
class _ShownClip:
    uri: Markup
    video: bool
    label: str
    size: tuple[int, int] | None
    tiny: bool


@dataclass(frozen=True)
class _ShownMethod:
    name: str
    hue: str
    prompt: str
    verdict: str
    verdict_style: str
    score: str
    critique: str
    clips: list[_ShownClip]


@dataclass(frozen=True)
class _ShownExample:
    query: str
    query_id: str
    methods: list[_ShownMethod]
    answers: list[tuple[str, list[Sequence[bool | None]]]]
    differing: int


def _shown_example(example: Example) -> _ShownExample:
    methods = [
        _ShownMethod(
            name=grids.method_name(method.method),
            hue=grids.hue(method.method),
            prompt=method.prompt,
            verdict=method.verdict or "",
            verdict_style=method.verdict if method.verdict in _KNOWN_VERDICTS else "other",
            score="" if method.score is None else grids.written(Estimate(method.score))[0],
            critique=method.critique or "",
            clips=[_shown_clip(clip) for clip in method.clips],
        )
        for method in example.methods
    ]
    # Keyed by place: two columns may hold the same method with different checkpoints.
    answers = {
        str(place): {answer.question: answer.marks for answer in method.answers}
        for place, method in enumerate(example.methods)
    }
    lines, differing = grids.answer_table(answers)
    return _ShownExample(example.query, example.query_id, methods, lines, differing)


def _shown_clip(clip: Clip) -> _ShownClip:
    video = clip.mime_type.startswith("video/")
    size = None if video else _image_size(clip.content)
    tiny = size is not None and max(size) <= _TINY_CLIP
    return _ShownClip(_data_uri(clip.content, clip.mime_type), video, clip.label, size, tiny)


def _image_size(content: bytes) -> tuple[int, int] | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.size
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return None  # The browser shows the label instead.


def _data_uri(content: bytes, mime_type: str = "image/png") -> Markup:
    """Safe as it is: base64, and a type from a fixed list."""
    return Markup("data:{};base64,{}").format(mime_type, base64.b64encode(content).decode())


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_cleaned,
    )
    environment.filters["data_uri"] = _data_uri
    environment.filters["digest"] = _digest
    return environment


def _cleaned(value: object) -> object:
    """What every expression of the template passes through before it is escaped."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return readable(value, LONGEST_TEXT)
    return value


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(str(script).encode()).digest()).decode()
