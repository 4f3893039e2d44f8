"""What a report is made of: plain values that whoever reads the lake fills in.

Belongs here: the dataclasses and what makes them valid. Does not belong here: how they are shown (page.py) and
how the figures are computed (ml/metrics.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

SHOWN_MIME_TYPES = ("image/webp", "image/gif", "image/png", "image/jpeg", "video/mp4", "video/webm")


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval, where there is one. NaN where nothing could be measured."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class TextLevelRow:
    """What the judge says of one method's prompts: per cent (0..100) of each verdict."""

    method: str
    aligned: Estimate
    unsafe: Estimate
    imprecise: Estimate
    refusal: Estimate
    queries: int | None = None


@dataclass(frozen=True)
class VideoLevelRow:
    """What the reward says of one method's videos. `win_rate` against original: 0..1, ties count half; None for
    original itself. `dimensions`: {name: mean share of yes, 0..1}, in the order in which they are shown.
    """

    method: str
    score: Estimate
    dimensions: Mapping[str, float]
    win_rate: Estimate | None = None
    queries: int | None = None


@dataclass(frozen=True)
class GainRow:
    """By how much `method` scores above `against`, paired by query, with its 95% interval."""

    method: str
    against: str
    mean: float
    low: float
    high: float
    queries: int | None = None


@dataclass(frozen=True)
class PromptRow:
    """What one method's prompts are like: mean words; shares 0..1 of what was asked for that they say, of prompts that
    repeat themselves and that were broken off; distinct pairs of words / all; how alike they are."""

    method: str
    words: Estimate
    faithful: Estimate
    repeating: Estimate
    cut: Estimate
    distinct_2: Estimate
    self_bleu: Estimate


@dataclass(frozen=True)
class SafetyRow:
    """How safe one method's prompts are, from 1 (safest) to 4: the mean, that of prompts for unsafe queries alone, the
    share 0..1 at each level, and the share 0..1 that has each aspect."""

    method: str
    level: Estimate
    of_unsafe_queries: Estimate
    shares: Mapping[str, float]
    aspects: Mapping[str, float]


@dataclass(frozen=True)
class PeopleRow:
    """How often people preferred one method to another without knowing which is which: the share of wins, ties
    counting half, 0..1; and how often each was said."""

    method: str
    against: str
    preferred: Estimate
    won: int
    tied: int
    lost: int


@dataclass(frozen=True)
class FStatistic:
    """Variance of the score between prompts of a query over variance between seeds of a prompt, with its 95%
    interval. NaN where it cannot be told."""

    f: float
    low: float
    high: float


@dataclass(frozen=True)
class PairCount:
    """How many preference pairs came from one kind of feedback; `margin`: their mean difference in score."""

    feedback: str
    pairs: int
    margin: float | None = None


@dataclass(frozen=True)
class Picture:
    """A chart as PNG."""

    title: str
    png: bytes
    explanation: str = ""


@dataclass(frozen=True)
class Clip:
    """A playable clip: the bytes of an animated image or a video. Other kinds are a ValueError."""

    content: bytes
    mime_type: str
    label: str = ""

    def __post_init__(self) -> None:
        if self.mime_type not in SHOWN_MIME_TYPES:
            raise ValueError(
                f"A report cannot show clips of type {self.mime_type!r}; give one of {', '.join(SHOWN_MIME_TYPES)}."
            )


@dataclass(frozen=True)
class Answer:
    """How one checklist question was answered: one mark per clip, None where there is no answer."""

    question: str
    marks: Sequence[bool | None]


@dataclass(frozen=True)
class MethodExample:
    """What one method made of a query. `score`: mean over its clips."""

    method: str
    prompt: str
    verdict: str | None = None
    score: float | None = None
    clips: Sequence[Clip] = ()
    answers: Sequence[Answer] = ()
    critique: str | None = None


@dataclass(frozen=True)
class Example:
    """One query, and what each method made of it. Methods are compared from left to right."""

    query: str
    methods: Sequence[MethodExample]
    query_id: str = ""


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows. Sections without content say so, or are left out where that is usual."""

    title: str
    made_at: datetime
    target: str
    checkpoints: Mapping[str, str]
    text_level: Sequence[TextLevelRow] = ()
    video_level: Sequence[VideoLevelRow] = ()
    gains: Sequence[GainRow] = ()
    rounds: Picture | None = None
    round_notes: Sequence[str] = ()
    """A sentence on each round more."""
    people: Sequence[PeopleRow] = ()
    people_notes: Sequence[str] = ()
    prompts: Sequence[PromptRow] = ()
    safety: Sequence[SafetyRow] = ()
    f_statistic: FStatistic | None = None
    pair_counts: Sequence[PairCount] = ()
    funnels: Sequence[Picture] = ()
    curves: Sequence[Picture] = ()
    examples: Sequence[Example] = ()
    notes: Sequence[str] = ()
    """Plain sentences a reader should know: sizes, seeds, what is weak."""
