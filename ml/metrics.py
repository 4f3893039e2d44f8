"""Figures: intervals, win rates, the evaluation tables, variance ratios, diversity of texts, and degenerate
rewards.

Here: plain functions from numbers and verdicts to numbers. Not here: where these come from, how they are
stored, and how they are drawn.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

VERDICTS = ("aligned", "unsafe", "imprecise", "refusal")


# ------------------------------------------------------------------------------------------- intervals


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval over n values. All NaN where n is 0."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap_interval(
    values: npt.ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap (Efron) of the mean of `values` (n,), the same for the same seed.

    For a paired comparison give the differences per query. One value has the interval [value, value]: with n
    = 1 nothing can be said about spread, so look at n. Raises ValueError for values that are not finite.
    """
    data = np.asarray(values, dtype=np.float64).ravel()
    if not 0 < confidence < 1:
        raise ValueError(f"A confidence lies between 0 and 1, not at {confidence}.")
    if not np.isfinite(data).all():
        raise ValueError("Cannot take the mean of values that are not finite numbers.")
    if data.size == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    random = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, 4_000_000 // data.size)
    for begin in range(0, resamples, step):
        rows = min(step, resamples - begin)
        means[begin : begin + rows] = data[random.integers(0, data.size, (rows, data.size))].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(data.mean()), float(low), float(high), int(data.size))


@dataclass(frozen=True)
class WinRate:
    """Shares 0..1 of comparisons won, tied and lost; rate = won + tied / 2, with its 95% interval."""

    won: float
    tied: float
    lost: float
    rate: float
    low: float
    high: float
    n: int


def win_rates(a: npt.ArrayLike, b: npt.ArrayLike, *, tie: float = 1e-9, seed: int = 0) -> WinRate:
    """How often `a` beats `b`, pair by pair (n,); differences up to `tie` are ties and count half."""
    first, second = _paired(a, b)
    difference = first - second
    points = np.where(np.abs(difference) <= tie, 0.5, (difference > 0).astype(np.float64))
    interval = bootstrap_interval(points, seed=seed)
    if not points.size:
        nan = float("nan")
        return WinRate(nan, nan, nan, nan, nan, nan, 0)
    won, tied = float((points == 1).mean()), float((points == 0.5).mean())
    lost = float((points == 0).mean())
    return WinRate(won, tied, lost, interval.mean, interval.low, interval.high, interval.n)


def _paired(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[Floats, Floats]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"Paired values need one shape (n,); these have {first.shape} and {second.shape}.")
    return first, second


# ------------------------------------------------------------------------------------------ evaluation
# tables


@dataclass(frozen=True)
class TextLevelRow:
    """Percentages of the prompts of one method by verdict; they sum to 100. `intervals` holds each with its
    95%.
    """

    method: str
    aligned: float
    unsafe: float
    imprecise: float
    refusal: float
    n: int
    intervals: Mapping[str, Interval]


def text_level_table(critiques: pa.Table, *, seed: int = 0) -> list[TextLevelRow]:
    """VPO's text-level table. `critiques` has method and verdict (one of VERDICTS); methods in order of
    occurrence.
    """
    verdicts = critiques["verdict"].to_pylist()
    unknown = sorted({str(verdict) for verdict in verdicts} - set(VERDICTS))
    if unknown:
        raise ValueError(f"Unknown verdict {unknown[0]!r}; verdicts are {', '.join(VERDICTS)}.")
    methods = critiques["method"].to_pylist()
    rows = []
    for method in dict.fromkeys(methods):
        own = [verdict for verdict, by in zip(verdicts, methods, strict=True) if by == method]
        intervals = {
            name: bootstrap_interval([100.0 * (verdict == name) for verdict in own], seed=seed) for name in VERDICTS
        }
        shares = {name: interval.mean for name, interval in intervals.items()}
        rows.append(TextLevelRow(method=method, n=len(own), intervals=intervals, **shares))
    return rows


@dataclass(frozen=True)
class VideoLevelRow:
    """The mean score of one method over queries (each query averaged over its seeds first), with 95%
    interval.
    """

    method: str
    score: float
    low: float
    high: float
    n: int
    dimensions: Mapping[str, float]
    win_rate: WinRate | None


def video_level_table(rewards: pa.Table, *, against: str = "original", seed: int = 0) -> list[VideoLevelRow]:
    """VPO's video-level table, with win rates by query against one method.

    `rewards` has method, query_id, score and dimensions (list of struct dimension, score), one row per video.
    Methods come in order of occurrence; the win rate of `against` itself, and of methods that share no query
    with it, is None.
    """
    scores = scores_by_query(rewards)
    dimensions = _dimension_means(rewards)
    rows = []
    for method, by_query in scores.items():
        interval = bootstrap_interval(list(by_query.values()), seed=seed)
        shared = [query for query in by_query if query in scores.get(against, {})]
        win_rate = None
        if method != against and shared:
            opponent = scores[against]
            win_rate = win_rates(
                [by_query[query] for query in shared], [opponent[query] for query in shared], seed=seed
            )
        rows.append(
            VideoLevelRow(
                method,
                interval.mean,
                interval.low,
                interval.high,
                interval.n,
                dimensions.get(method, {}),
                win_rate,
            )
        )
    return rows


def scores_by_query(rewards: pa.Table) -> dict[str, dict[str, float]]:
    """{method: {query_id: mean score over the query's videos}}, methods in order of occurrence, queries
    sorted.
    """
    means = rewards.group_by(["method", "query_id"]).aggregate([("score", "mean")]).sort_by("query_id")
    found: dict[str, dict[str, float]] = {method: {} for method in dict.fromkeys(rewards["method"].to_pylist())}
    columns = [means[name].to_pylist() for name in ("method", "query_id", "score_mean")]
    for method, query_id, score in zip(*columns, strict=True):
        if score is None:
            raise ValueError(f"The videos of query {query_id} by {method} have no score.")
        found[method][query_id] = float(score)
    return found


def _dimension_means(rewards: pa.Table) -> dict[str, dict[str, float]]:
    """{method: {dimension: mean over queries of the mean over the query's videos}}."""
    lists = rewards["dimensions"].combine_chunks()
    row, flat = pc.list_parent_indices(lists), pc.list_flatten(lists)
    long = pa.table(
        {
            "method": rewards["method"].combine_chunks().take(row),
            "query_id": rewards["query_id"].combine_chunks().take(row),
            "dimension": pc.struct_field(flat, "dimension"),
            "score": pc.struct_field(flat, "score"),
        }
    )
    by_query = long.group_by(["method", "query_id", "dimension"], use_threads=False).aggregate([("score", "mean")])
    means = by_query.group_by(["method", "dimension"], use_threads=False).aggregate([("score_mean", "mean")])
    found: dict[str, dict[str, float]] = {}
    for entry in means.to_pylist():
        found.setdefault(entry["method"], {})[entry["dimension"]] = entry["score_mean_mean"]
    return found


@dataclass(frozen=True)
class GainRow:
    """By how much one method's score exceeds another's, paired by query, with its 95% interval over n
    queries.
    """

    method: str
    against: str
    mean: float
    low: float
    high: float
    n: int


def gains(rewards: pa.Table, comparisons: Iterable[tuple[str, str]] | None = None, *, seed: int = 0) -> list[GainRow]:
    """Paired differences of scores between methods (method, against), over the queries that both have.

    `rewards` as for video_level_table. Without `comparisons` each method is compared with each that occurs
    before it. Raises ValueError for a method that has no rows.
    """
    scores = scores_by_query(rewards)
    methods = list(scores)
    if comparisons is None:
        comparisons = [(later, earlier) for index, later in enumerate(methods) for earlier in methods[:index]]
    rows = []
    for method, against in comparisons:
        missing = [name for name in (method, against) if name not in scores]
        if missing:
            raise ValueError(f"There are no rewards of the method {missing[0]!r}; there are {', '.join(methods)}.")
        own, other = scores[method], scores[against]
        interval = bootstrap_interval([own[query] - other[query] for query in own if query in other], seed=seed)
        rows.append(GainRow(method, against, interval.mean, interval.low, interval.high, interval.n))
    return rows


# ----------------------------------------------------------------------------------- trust in a reward


@dataclass(frozen=True)
class VarianceRatio:
    """f = variance between the prompts of a query / variance between the seeds of a prompt.

    About 1: the reward sees no difference between prompts that seeds alone would not make. NaN when it cannot
    be told (no query with two prompts, or no prompt with two seeds). `low` and `high`: 95% bootstrap over
    queries.
    """

    f: float
    between: float
    within: float
    between_freedom: int
    within_freedom: int
    low: float
    high: float


def f_statistic(scores: npt.ArrayLike, *, resamples: int = 1000, seed: int = 0) -> VarianceRatio:
    """One-way analysis of variance within each query, pooled over queries.

    `scores` is (queries, prompts, seeds); NaN where a query has fewer prompts or a prompt fewer videos.
    Queries with one prompt, and prompts with one seed, add to one of the two variances only.
    """
    data = np.asarray(scores, dtype=np.float64)
    if data.ndim != 3:
        raise ValueError(f"Scores must have the shape (queries, prompts, seeds); these have {data.shape}.")
    if np.isinf(data).any():
        raise ValueError("A score is infinite.")
    parts = _variance_parts(data)
    between, within, between_freedom, within_freedom = parts.sum(axis=0)
    low = high = float("nan")
    if len(parts) > 1 and between_freedom > 0 and within_freedom > 0:
        random = np.random.default_rng(seed)
        drawn = parts[random.integers(0, len(parts), (resamples, len(parts)))].sum(axis=1)
        ratios = _ratio(drawn[:, 0], drawn[:, 1], drawn[:, 2], drawn[:, 3])
        ratios = ratios[~np.isnan(ratios)]
        if ratios.size:
            low, high = (float(value) for value in np.quantile(ratios, [0.025, 0.975], method="nearest"))
    return VarianceRatio(
        f=float(_ratio(between, within, between_freedom, within_freedom)),
        between=float(between / between_freedom) if between_freedom else float("nan"),
        within=float(within / within_freedom) if within_freedom else float("nan"),
        between_freedom=int(between_freedom),
        within_freedom=int(within_freedom),
        low=low,
        high=high,
    )


def _variance_parts(data: Floats) -> Floats:
    """(queries, 4): sums of squares between and within prompts, and their degrees of freedom."""
    present = ~np.isnan(data)
    count = present.sum(axis=2)
    filled = np.where(present, data, 0.0)
    total = filled.sum(axis=2)
    mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    within = (np.where(present, data - mean[:, :, None], 0.0) ** 2).sum(axis=(1, 2))
    size = count.sum(axis=1)
    centre = np.divide(total.sum(axis=1), size, out=np.zeros(len(data)), where=size > 0)
    between = (count * (mean - centre[:, None]) ** 2).sum(axis=1)
    prompts = (count > 0).sum(axis=1)
    return np.stack([between, within, np.maximum(prompts - 1, 0), size - prompts], axis=1).astype(np.float64)


def _ratio(
    between: npt.ArrayLike,
    within: npt.ArrayLike,
    between_freedom: npt.ArrayLike,
    within_freedom: npt.ArrayLike,
) -> Floats:
    """NaN for 0/0; infinite where seeds make no difference at all but prompts do."""
    with np.errstate(divide="ignore", invalid="ignore"):
        upper = np.asarray(between, dtype=np.float64) / np.asarray(between_freedom, dtype=np.float64)
        lower = np.asarray(within, dtype=np.float64) / np.asarray(within_freedom, dtype=np.float64)
        return np.asarray(upper / lower, dtype=np.float64)


@dataclass(frozen=True)
class Degeneracy:
    """Whether a reward tells videos apart. `constant_questions`: positions that every video answers alike."""

    degenerate: bool
    reason: str
    constant_questions: tuple[int, ...]
    all_yes: float
    all_no: float
    score_spread: float


def reward_degeneracy(answers: npt.ArrayLike, scores: npt.ArrayLike, *, limit: float = 0.95) -> Degeneracy:
    """Signs that a reward is broken: every answer the same, or every video scored the same.

    `answers` is (videos, questions) of 0/1 or shares, `scores` (videos,). Degenerate where all questions are
    constant, where more than `limit` of at least two videos answer everything with yes (or everything with
    no: the known failure of a parser that reads every answer as "no"), or where the scores do not differ.
    """
    table, values = np.asarray(answers, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or values.shape != (len(table),):
        raise ValueError(f"Expected (videos, questions) and (videos,), got {table.shape} and {values.shape}.")
    if len(table) < 2 or table.shape[1] == 0:
        return Degeneracy(False, "too few videos to tell", (), float("nan"), float("nan"), float("nan"))
    constant = tuple(int(column) for column in np.flatnonzero(np.ptp(table, axis=0) == 0))
    all_yes, all_no = float((table >= 1).all(axis=1).mean()), float((table <= 0).all(axis=1).mean())
    spread = float(values.std())
    reason = ""
    if not np.isfinite(values).all() or not np.isfinite(table).all():
        reason = "a score or an answer is not a finite number"
    elif all_no > limit:
        reason = f"{all_no:.0%} of the videos answer every question with no"
    elif all_yes > limit:
        reason = f"{all_yes:.0%} of the videos answer every question with yes"
    elif len(constant) == table.shape[1]:
        reason = "every video gives the same answers"
    elif np.ptp(values) <= 1e-12:
        reason = "every video has the same score"
    return Degeneracy(bool(reason), reason, constant, all_yes, all_no, spread)


# ---------------------------------------------------------------------------------------- diversity of
# texts


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Distinct n-grams of words / all n-grams, over all texts (Li et al. 2016). NaN where there is none."""
    if n < 1:
        raise ValueError(f"An n-gram has at least one word, not {n}.")
    _, grams, _ = _grams(_WordCodes().encode(texts), n)
    return float(len(np.unique(grams)) / len(grams)) if len(grams) else float("nan")


def self_bleu(texts: Sequence[str], *, sample: int = 1000, seed: int = 0, order: int = 4) -> float | None:
    """Mean BLEU of a text against all others (Zhu et al. 2018): 1 when all are alike, near 0 when all differ.

    More than `sample` texts are drawn down to that many, the same ones for the same seed. None for fewer than
    two.
    """
    if len(texts) < 2:
        return None
    chosen = np.arange(len(texts))
    if len(texts) > sample:
        chosen = np.sort(np.random.default_rng(seed).choice(len(texts), sample, replace=False))
    drawn = [texts[position] for position in chosen.tolist()]
    return float(bleu_against(drawn, drawn, own=np.arange(len(drawn)), order=order).mean())


def bleu_against(
    texts: Sequence[str],
    references: Sequence[str],
    *,
    own: npt.ArrayLike | None = None,
    order: int = 4,
    chunk: int = 20_000,
) -> Floats:
    """(n,) sentence BLEU of each text against all references at once (Papineni et al. 2002, multi-reference).

    Words are compared case-folded. Precisions of n-grams up to `order`, as long as the text has any, enter
    one geometric mean; a precision of 0 counts as 0.1 match (method 1 of Chen and Cherry 2014). The brevity
    penalty takes the reference length closest to the text's. `own` (n,) is the position of each text among
    the references, to be left out for it; -1 where it is not among them. A text without words scores 0.
    """
    left_out = np.full(len(texts), -1, dtype=np.int64) if own is None else np.asarray(own, dtype=np.int64)
    codes = _WordCodes()
    reference_words = codes.encode(references)
    counts = [_ReferenceCounts(reference_words, n) for n in range(1, order + 1)]
    lengths = np.array([len(words) for words in reference_words], dtype=np.int64)
    result = np.zeros(len(texts))
    for begin in range(0, len(texts), chunk):
        part = slice(begin, begin + chunk)
        words = codes.encode(texts[part])
        penalty = _brevity(np.array([len(item) for item in words], dtype=np.int64), lengths, left_out[part])
        logs, used = np.zeros(len(words)), np.zeros(len(words))
        for n, known in enumerate(counts, start=1):
            matches, total = known.matches(words, n, left_out[part])
            has = total > 0
            precision = np.divide(np.maximum(matches, 0.1), total, out=np.ones(len(words)), where=has)
            logs += np.where(has, np.log(precision), 0.0)
            used += has
        score = np.exp(np.divide(logs, used, out=np.zeros(len(words)), where=used > 0)) * penalty
        result[part] = np.where(used > 0, score, 0.0)
    return result


_WORD = re.compile(r"\w+(?:['’]\w+)*")


class _WordCodes:
    """One number per distinct word, starting at 1."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def encode(self, texts: Sequence[str]) -> list[Integers]:
        codes = self._codes
        return [
            np.array(
                [codes.setdefault(word, len(codes) + 1) for word in _WORD.findall(text.casefold())],
                dtype=np.int64,
            )
            for text in texts
        ]


_MIX = np.uint64(0x9E3779B97F4A7C15)


def _grams(words: Sequence[Integers], n: int) -> tuple[Integers, Hashes, Integers]:
    """(owner, n-gram) of every n-gram in all texts, and the number of n-grams per text. N-grams are 64-bit
    hashes.
    """
    lengths = np.array([len(item) for item in words], dtype=np.int64)
    total = np.maximum(lengths - n + 1, 0)
    if not total.sum():
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64), total
    flat = np.concatenate(words).astype(np.uint64)
    owner = np.repeat(np.arange(len(words)), total)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    first = np.concatenate([[0], np.cumsum(total)[:-1]])
    position = starts[owner] + np.arange(len(owner)) - first[owner]
    gram = np.zeros(len(owner), dtype=np.uint64)
    for offset in range(n):
        gram = (gram ^ flat[position + offset]) * _MIX
        gram ^= gram >> np.uint64(29)
    return owner, gram, total


def _counted(owner: Integers, gram: Hashes) -> tuple[Integers, Hashes, Integers]:
    """Distinct (owner, n-gram) with how often each occurs."""
    order = np.lexsort((gram, owner))
    owner, gram = owner[order], gram[order]
    new = np.ones(len(owner), dtype=np.bool_)
    new[1:] = (owner[1:] != owner[:-1]) | (gram[1:] != gram[:-1])
    starts = np.flatnonzero(new)
    return owner[starts], gram[starts], np.diff(np.append(starts, len(owner))).astype(np.int64)


class _ReferenceCounts:
    """How often any one reference holds an n-gram at most, also when one of the references is left out."""

    def __init__(self, references: Sequence[Integers], n: int) -> None:
        owner, gram, _ = _grams(references, n)
        owner, gram, count = _counted(owner, gram)
        order = np.lexsort((owner, -count, gram))
        owner, gram, count = owner[order], gram[order], count[order]
        self._gram, starts = np.unique(gram, return_index=True)
        sizes = np.diff(np.append(starts, len(gram)))
        self._most, self._owner = count[starts], owner[starts]
        # Each (reference, n-gram) occurs once here, so the next row belongs to another reference.
        second = np.minimum(starts + 1, max(len(count) - 1, 0))
        self._next = np.where(sizes > 1, count[second] if len(count) else 0, 0)

    def matches(self, words: Sequence[Integers], n: int, left_out: Integers) -> tuple[Floats, Integers]:
        """Clipped matches and number of n-grams per text."""
        owner, gram, total = _grams(words, n)
        owner, gram, count = _counted(owner, gram)
        if not len(self._gram) or not len(gram):
            return np.zeros(len(words)), total
        at = np.minimum(np.searchsorted(self._gram, gram), len(self._gram) - 1)
        most = np.where(self._owner[at] == left_out[owner], self._next[at], self._most[at])
        clipped = np.where(self._gram[at] == gram, np.minimum(count, most), 0)
        return np.bincount(owner, weights=clipped, minlength=len(words)).astype(np.float64), total


def _brevity(lengths: Integers, references: Integers, left_out: Integers) -> Floats:
    """min(1, exp(1 - r / c)) with r the reference length closest to c, the shorter of two equally close."""
    ordered = np.argsort(references, kind="stable")
    penalty = np.ones(len(lengths))
    if not len(references):
        return penalty
    # Without the text's own entry: look past it on both sides.
    after = np.searchsorted(references[ordered], lengths, side="left")
    best = np.full(len(lengths), -1, dtype=np.int64)
    distance = np.full(len(lengths), np.iinfo(np.int64).max)
    for offset in (-2, -1, 0, 1):
        place = after + offset
        inside = (place >= 0) & (place < len(references))
        entry = ordered[np.clip(place, 0, len(references) - 1)]
        usable = inside & (entry != left_out)
        away = np.where(usable, np.abs(references[entry] - lengths), np.iinfo(np.int64).max)
        closer = away < distance
        best = np.where(closer, references[entry], best)
        distance = np.minimum(distance, away)
    short = (best > lengths) & (lengths > 0)
    penalty[short] = np.exp(1 - best[short] / lengths[short])
    return penalty
