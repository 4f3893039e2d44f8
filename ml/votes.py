"""Votes of people between two clips: how often a method wins, and how far people agree.

Here: plain functions from votes to numbers. Not here: who is asked what, and where votes are kept.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from statistics import fmean

from ml.metrics import bootstrap_interval


@dataclass(frozen=True)
class Ballot:
    """One person's vote on two clips of one query. `preferred`: one of the two methods, or None for a tie.

    `first` and `second` in any order: (a, b) and (b, a) are votes on the same two methods.
    """

    query_id: str
    annotator: str
    first: str
    second: str
    preferred: str | None

    def points(self, method: str) -> float:
        """1 for a win of the method, 0.5 for a tie, 0 for a loss."""
        return 0.5 if self.preferred is None else float(self.preferred == method)


@dataclass(frozen=True)
class Preference:
    """How often people prefer `method` to `against`: `rate` is wins + ties / 2, 0..1, with its 95% interval over
    `queries`, since several votes on one query do not stand alone. Each query counts once, by the mean of its votes."""

    method: str
    against: str
    won: int
    tied: int
    lost: int
    rate: float
    low: float
    high: float
    queries: int
    annotators: int

    @property
    def votes(self) -> int:
        return self.won + self.tied + self.lost


def preferences(ballots: Iterable[Ballot], order: Sequence[str], *, seed: int = 0) -> list[Preference]:
    """A row for every two methods that were voted on; the one later in `order` is the row's method."""
    pairs: dict[tuple[str, str], list[Ballot]] = {}
    for ballot in ballots:
        against, method = sorted((ballot.first, ballot.second), key=lambda name: _place(name, order))
        pairs.setdefault((method, against), []).append(ballot)
    ranked = sorted(pairs, key=lambda pair: (_place(pair[1], order), _place(pair[0], order)))
    return [_preference(method, against, pairs[method, against], seed) for method, against in ranked]


def _place(method: str, order: Sequence[str]) -> tuple[int, str]:
    return (order.index(method) if method in order else len(order), method)


def _preference(method: str, against: str, ballots: Sequence[Ballot], seed: int) -> Preference:
    points: dict[str, list[float]] = {}
    for ballot in ballots:
        points.setdefault(ballot.query_id, []).append(ballot.points(method))
    interval = bootstrap_interval([fmean(values) for _, values in sorted(points.items())], seed=seed)
    counted = Counter(ballot.points(method) for ballot in ballots)
    return Preference(
        method,
        against,
        counted[1.0],
        counted[0.5],
        counted[0.0],
        interval.mean,
        interval.low,
        interval.high,
        len(points),
        len({ballot.annotator for ballot in ballots}),
    )


@dataclass(frozen=True)
class Agreement:
    """How far people agree. `alpha`: Krippendorff's, 1 for full agreement, 0 for what chance gives; NaN where nothing
    can be said. `share`: of two votes on one unit, how often they are the same, 0..1. `units`: with two votes or more.
    """

    alpha: float
    share: float
    units: int


def agreement(units: Iterable[Sequence[Hashable]]) -> Agreement:
    """Krippendorff's alpha for nominal values (Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011).

    `units`: the values that people gave to one thing each; those with fewer than two say nothing of agreement.
    """
    pairable = [list(values) for values in units if len(values) > 1]
    coincidences: defaultdict[tuple[Hashable, Hashable], float] = defaultdict(float)
    for values in pairable:
        for pair in permutations(values, 2):
            coincidences[pair] += 1 / (len(values) - 1)
    n = sum(coincidences.values())
    if not n:
        return Agreement(float("nan"), float("nan"), 0)
    occurring: defaultdict[Hashable, float] = defaultdict(float)
    for (value, _), weight in coincidences.items():
        occurring[value] += weight
    observed = sum(weight for (one, other), weight in coincidences.items() if one != other) / n
    expected = (n**2 - sum(weight**2 for weight in occurring.values())) / (n * (n - 1))
    alpha = 1 - observed / expected if expected > 1e-12 else float("nan")
    return Agreement(alpha, 1 - observed, len(pairable))
