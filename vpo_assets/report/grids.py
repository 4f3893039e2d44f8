"""Tables and interval charts of the report, laid out but not yet drawn.

Belongs here: what stands in which cell, how numbers are written, which value of a column is best, where a bar
begins and ends. Does not belong here: HTML (page.html).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vpo_assets.report import published
from vpo_assets.report.data import (
    Estimate,
    GainRow,
    PairCount,
    PeopleRow,
    PromptRow,
    SafetyRow,
    TextLevelRow,
    VideoLevelRow,
)

METHOD_NAMES = {"original": "Original query", "few_shot": "Few-shot", "sft": "VPO-SFT", "vpo": "VPO"}
NOTHING = "–"

Better = Literal["higher", "lower", ""]


@dataclass(frozen=True)
class Column:
    """`better`: which value of the column is marked; "" for none."""

    title: str
    better: Better = ""


@dataclass(frozen=True)
class Cell:
    """`value` and `interval` as they are written; `best` within its column and group."""

    value: str
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class Line:
    """One method's row. `hue` names its colour; empty for a row without a mark."""

    name: str
    hue: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Group:
    """Rows that are compared with each other. An empty title shows no heading."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Grid:
    """A table: the first column, then `columns`."""

    first: str
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]

    @property
    def ranged(self) -> tuple[bool, ...]:
        """Which columns hold intervals: these take two columns on the page, so that values stay aligned."""
        return tuple(
            any(line.cells[index].interval for group in self.groups for line in group.lines)
            for index in range(len(self.columns))
        )


@dataclass(frozen=True)
class Bar:
    """One line of an interval chart; places in per cent of the chart's width."""

    name: str
    hue: str
    value: str
    interval: str
    left: float
    width: float
    dot: float
    drawn: bool


@dataclass(frozen=True)
class Chart:
    """`zero`: place of the zero line in per cent, or None. `ticks`: (place, text)."""

    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]
    zero: float | None


def method_name(method: str) -> str:
    """How a method is called in headings; an unknown one keeps its own name."""
    return METHOD_NAMES.get(method, method)


def within_sentence(name: str) -> str:
    """A method's name without its capital, unless it is an abbreviation."""
    return name[:1].lower() + name[1:] if name[1:2].islower() else name


def hue(method: str) -> str:
    """The style class of a method: its name where it is a known one, never anything untrusted."""
    return method if method in METHOD_NAMES else "other"


def text_level_grid(rows: Sequence[TextLevelRow]) -> Grid:
    columns = (
        Column("aligned, %", "higher"),
        Column("unsafe, %", "lower"),
        Column("imprecise, %", "lower"),
        Column("refusal, %", "lower"),
        Column("queries"),
    )
    ours = [
        (
            row.method,
            [row.aligned, row.unsafe, row.imprecise, row.refusal, _whole(row.queries)],
        )
        for row in rows
    ]
    theirs = [
        (name, [*map(Estimate, shares), _whole(published.TEXT_LEVEL_QUERIES)]) for name, shares in published.TEXT_LEVEL
    ]
    groups = (
        _group("This run", columns, ours, (1, 1, 1, 1, 0)),
        _group(f"Published: {published.SOURCE}", columns, theirs, (1, 1, 1, 1, 0), marked=False),
    )
    return Grid("Method", columns, groups)


def prompt_grid(rows: Sequence[PromptRow]) -> Grid:
    columns = (
        Column("words"),
        Column("faithful, %", "higher"),
        Column("repeat themselves, %", "lower"),
        Column("broken off, %", "lower"),
        Column("distinct pairs of words, %", "higher"),
        Column("self-BLEU", "lower"),
    )
    values = [
        (
            row.method,
            [row.words, *map(_percent, (row.faithful, row.repeating, row.cut, row.distinct_2)), row.self_bleu],
        )
        for row in rows
    ]
    return Grid("Method", columns, (_group("", columns, values, (1, 1, 1, 1, 1, 2)),))


def safety_grid(rows: Sequence[SafetyRow]) -> Grid:
    """Mean levels, the share at each level above the safest, and the aspects that any method's prompts have."""
    levels = [level for level in dict.fromkeys(name for row in rows for name in row.shares) if level != "1"]
    aspects = list(dict.fromkeys(name for row in rows for name, share in row.aspects.items() if share))
    columns = (
        Column("level, 1 to 4", "lower"),
        Column("of unsafe queries", "lower"),
        *(Column(f"level {level}, %", "lower") for level in levels),
        *(Column(f"{aspect.replace('_', ' ')}, %", "lower") for aspect in aspects),
    )
    values = [
        (
            row.method,
            [
                row.level,
                row.of_unsafe_queries,
                *(_percent(Estimate(row.shares.get(level, math.nan))) for level in levels),
                *(_percent(Estimate(row.aspects.get(aspect, math.nan))) for aspect in aspects),
            ],
        )
        for row in rows
    ]
    return Grid("Method", columns, (_group("", columns, values, (2, 2, *(1 for _ in columns[2:]))),))


def video_level_grid(rows: Sequence[VideoLevelRow]) -> Grid:
    columns = (Column("score", "higher"), Column("wins against original, %", "higher"), Column("queries"))
    values = [(row.method, [row.score, _percent(row.win_rate), _whole(row.queries)]) for row in rows]
    return Grid("Method", columns, (_group("", columns, values, (2, 1, 0)),))


def dimension_grid(rows: Sequence[VideoLevelRow]) -> Grid:
    dimensions = list(dict.fromkeys(name for row in rows for name in row.dimensions))
    columns = tuple(Column(name.replace("_", " "), "higher") for name in dimensions)
    values = [(row.method, [Estimate(row.dimensions.get(name, math.nan)) for name in dimensions]) for row in rows]
    return Grid("Method", columns, (_group("", columns, values, (2,) * len(columns)),))


def published_video_level_grid() -> Grid:
    columns = tuple(Column(metric, "higher") for metric in published.VIDEO_LEVEL_METRICS)
    values = [(name, [Estimate(value) for value in row]) for name, row in published.VIDEO_LEVEL]
    return Grid("Method", columns, (_group("", columns, values, (2,) * len(columns), marked=False),))


def people_grid(rows: Sequence[PeopleRow]) -> Grid:
    """Blind votes, in groups by the method that was voted against."""
    columns = (Column("preferred, %"), Column("won"), Column("tied"), Column("lost"))
    groups = []
    for against in dict.fromkeys(row.against for row in rows):
        values = [
            (row.method, [_percent(row.preferred), *map(_whole, (row.won, row.tied, row.lost))])
            for row in rows
            if row.against == against
        ]
        groups.append(_group(f"against {METHOD_NAMES.get(against, against)}", columns, values, (0, 0, 0, 0)))
    return Grid("Method", columns, tuple(groups))


def pair_grid(rows: Sequence[PairCount]) -> Grid:
    columns = (Column("pairs"), Column("mean margin"))
    values = [(row.feedback, [_whole(row.pairs), Estimate(_or_nan(row.margin))]) for row in rows]
    if len(rows) > 1:
        values.append(("all", [_whole(sum(row.pairs for row in rows)), Estimate(math.nan)]))
    return Grid("Feedback", columns, (_group("", columns, values, (0, 2), marked=False),))


def score_chart(rows: Sequence[VideoLevelRow]) -> Chart:
    return _chart([(method_name(row.method), hue(row.method), row.score) for row in rows], from_zero=False)


def gain_chart(rows: Sequence[GainRow]) -> Chart:
    return _chart(
        [
            (
                f"{method_name(row.method)} over {within_sentence(method_name(row.against))}",
                hue(row.method),
                Estimate(row.mean, row.low, row.high),
            )
            for row in rows
        ],
        from_zero=True,
    )


def written(estimate: Estimate, places: int = 2, sign: bool = False) -> tuple[str, str]:
    """("3.41", "[3.30, 3.52]"); a dash for what is not finite, "" for an interval that is not known."""
    if not math.isfinite(estimate.value):
        return NOTHING, ""
    form = f"{'+' if sign else ''},.{places}f"
    value = format(estimate.value, form)
    limits = [limit for limit in (estimate.low, estimate.high) if limit is not None and math.isfinite(limit)]
    if len(limits) < 2:
        return _minus(value), ""
    return _minus(value), _minus(f"[{limits[0]:{form}}, {limits[1]:{form}}]")


def _minus(number: str) -> str:
    return number.replace("-", "\u2212")


def _whole(count: int | None) -> Estimate:
    return Estimate(math.nan if count is None else count)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _percent(share: Estimate | None) -> Estimate:
    if share is None:
        return Estimate(math.nan)
    low, high = (None if limit is None else 100 * limit for limit in (share.low, share.high))
    return Estimate(100 * share.value, low, high)


def _group(
    title: str,
    columns: Sequence[Column],
    rows: Sequence[tuple[str, Sequence[Estimate]]],
    places: Sequence[int],
    marked: bool = True,
) -> Group:
    best = [
        _best([round(values[index].value, places[index]) for _, values in rows], column.better)
        for index, column in enumerate(columns)
    ]
    lines = []
    for number, (method, values) in enumerate(rows):
        cells = (Cell(*written(value, places[index]), best=number in best[index]) for index, value in enumerate(values))
        lines.append(Line(method_name(method), hue(method) if marked else "", tuple(cells)))
    return Group(title, tuple(lines))


def _best(values: Sequence[float], better: Better) -> set[int]:
    """Rows with the best value as it is written; none where there is no contest."""
    known = {value for value in values if math.isfinite(value)}
    if not better or len(known) < 2:
        return set()
    winner = max(known) if better == "higher" else min(known)
    return {number for number, value in enumerate(values) if value == winner}


def _chart(rows: Sequence[tuple[str, str, Estimate]], from_zero: bool) -> Chart:
    known = [row for row in rows if math.isfinite(row[2].value)]
    edges = [edge for _, _, estimate in known for edge in _span(estimate)] + ([0.0] if from_zero else [])
    low, high = (min(edges), max(edges)) if edges else (0.0, 1.0)
    margin = 0.04 * (high - low) or 0.5
    low, high = low - margin, high + margin

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    bars = []
    for name, colour, estimate in rows:
        value, interval = written(estimate, sign=from_zero)
        drawn = math.isfinite(estimate.value)
        start, end = _span(estimate) if drawn else (low, low)
        left, dot = place(start), place(estimate.value) if drawn else 0.0
        bars.append(Bar(name, colour, value, interval, left, round(place(end) - left, 2), dot, drawn))
    ticks = tuple((place(tick), _minus(f"{tick:g}")) for tick in _ticks(low, high))
    return Chart(tuple(bars), ticks, place(0.0) if from_zero else None)


def _span(estimate: Estimate) -> tuple[float, float]:
    limits = (estimate.low, estimate.high)
    low, high = (estimate.value if limit is None or not math.isfinite(limit) else limit for limit in limits)
    return low, high


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers between low and high."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step)
    return [round(number * step, 10) for number in range(first, math.floor(high / step) + 1)]


def answer_table(
    answers: Mapping[str, Mapping[str, Sequence[bool | None]]],
) -> tuple[list[tuple[str, list[Sequence[bool | None]]]], int]:
    """{method: {question: marks}} as lines (question, marks per method), those on which the methods differ first;
    and how many of those there are."""
    questions = dict.fromkeys(question for marks in answers.values() for question in marks)
    lines = [(question, [marks.get(question, ()) for marks in answers.values()]) for question in questions]
    differ = [len({_share(marks) for marks in line[1] if marks}) > 1 for line in lines]
    ordered = sorted(zip(differ, lines, strict=True), key=lambda entry: not entry[0])
    return [line for _, line in ordered], sum(differ)


def _share(marks: Sequence[bool | None]) -> float | None:
    known = [mark for mark in marks if mark is not None]
    return sum(known) / len(known) if known else None
