"""Places of lines and bars in the viewer's drawings.

Belongs here: from numbers to coordinates. Does not belong here: SVG (templates), and the figures themselves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 320, 120
_MARGIN = 6


@dataclass(frozen=True)
class Line:
    """One curve in a field of WIDTH x HEIGHT. `points` as SVG wants them; `ticks`: (y, text)."""

    name: str
    points: str
    ticks: Sequence[tuple[float, str]]
    last_x: float
    last_y: float
    last: str
    steps: int


@dataclass(frozen=True)
class Step:
    """One bar of a funnel. `share` of the first one, in per cent; `lost` since the one before."""

    name: str
    count: int
    share: float
    lost: int


def line(name: str, values: Sequence[tuple[float, float]]) -> Line | None:
    """A curve through (step, value); None if fewer than two of them are finite."""
    known = [(x, y) for x, y in values if math.isfinite(x) and math.isfinite(y)]
    if len(known) < 2:
        return None
    left, right = min(x for x, _ in known), max(x for x, _ in known)
    low, high = min(y for _, y in known), max(y for _, y in known)
    middle = (low + high) / 2

    def x_of(x: float) -> float:
        return round(_MARGIN + (WIDTH - 2 * _MARGIN) * (x - left) / ((right - left) or 1), 1)

    def y_of(y: float) -> float:
        return round(_MARGIN + (HEIGHT - 2 * _MARGIN) * ((high - y) / (high - low) if high > low else 0.5), 1)

    points = " ".join(f"{x_of(x)},{y_of(y)}" for x, y in known)
    ticks = [(y_of(value), f"{value:.3g}") for value in sorted({low, middle, high})]
    x, y = known[-1]
    return Line(name, points, ticks, x_of(x), y_of(y), f"{y:.3g}", int(right))


def funnel(counts: Sequence[tuple[str, int]]) -> list[Step]:
    """Bars for counts that get smaller from one to the next."""
    first = max(counts[0][1], 1) if counts else 1
    before = [counts[0][1], *(count for _, count in counts)] if counts else []
    return [
        Step(name, count, round(100 * count / first, 2), max(previous - count, 0))
        for (name, count), previous in zip(counts, before, strict=False)
    ]
