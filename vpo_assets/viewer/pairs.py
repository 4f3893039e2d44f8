"""Preference pairs as they are looked at: both prompts, their clips, what told them apart, where they came from.

Belongs here: reading pairs from the lake. Does not belong here: selecting them (ml/preference.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from storage.tables import CANDIDATE_CRITIQUES, CANDIDATES, PREFERENCE_PAIRS, QUERIES, VIDEO_REWARDS, VIDEOS
from vpo_assets.report.grids import answer_table
from vpo_assets.viewer.differences import Piece, differences
from vpo_assets.viewer.filters import PAGE_ROWS, PairFilter, contains_words
from vpo_assets.viewer.results import Marks, Results, Row, ShownClip, Source, clip_of

SCORE = "score"


@dataclass(frozen=True)
class Side:
    """One prompt of a pair. `refined`: the judge wrote it; then there is no candidate of its own."""

    name: str
    pieces: Sequence[Piece]
    prompt_id: str | None
    policy: str | None
    verdict: str | None
    critique: str | None
    clips: Sequence[ShownClip]

    @property
    def refined(self) -> bool:
        return self.prompt_id is None

    @property
    def score(self) -> float | None:
        scores = [clip.score for clip in self.clips if clip.score is not None]
        return fmean(scores) if scores else None


@dataclass(frozen=True)
class ShownPair:
    """A pair. `answers`: (question, marks of the chosen clips, of the rejected), the `differing` ones first; `gains`:
    by how much the chosen clips are better, in score and in each dimension."""

    pair_id: str
    query_id: str
    query: str
    feedback: str
    margin: float | None
    chosen: Side
    rejected: Side
    answers: Sequence[tuple[str, Sequence[Marks]]]
    differing: int
    gains: Mapping[str, float]
    source: Source | None


@dataclass(frozen=True)
class PairPage:
    """Some pairs of all `found`, of the `total` that there are."""

    pairs: Sequence[ShownPair]
    found: int
    total: int


def pair_page(results: Results, wanted: PairFilter, rows: int = PAGE_ROWS) -> PairPage:
    """One page of the pairs that pass a filter. `rows`: so many on it."""
    condition, parameters = _condition(results, wanted)
    table = PREFERENCE_PAIRS.at(results.target)
    source = (
        f"FROM {table.qualified} AS p LEFT JOIN {QUERIES.qualified} AS q ON q.query_id = p.query_id WHERE {condition}"
    )
    order = "p.margin DESC NULLS LAST, p.pair_id" if wanted.order == "margin" else "p.pair_id"
    found = int(results.lake.query(f"SELECT count(*) AS n {source}", parameters)["n"][0].as_py())
    page = results.lake.query(
        f"SELECT p.*, coalesce(q.query, p.messages[-1].content) AS query {source} ORDER BY {order} LIMIT ? OFFSET ?",
        [*parameters, rows, wanted.first_row],
    ).to_pylist()
    return PairPage(_shown(results, page), found, results.lake.count(table))


def _condition(results: Results, wanted: PairFilter) -> tuple[str, list[Any]]:
    columns = "q.query, p.chosen, p.rejected, p.pair_id, p.query_id, p.chosen_prompt_id, p.rejected_prompt_id"
    text, words = contains_words(columns, wanted.words)
    conditions, parameters = [text], [words] if words else []
    values: list[Any] = parameters  # of several types
    if wanted.feedback:
        conditions.append("p.feedback = ?")
        values.append(wanted.feedback)
    if wanted.margin:
        conditions.append("p.margin >= ?")
        values.append(wanted.margin)
    if wanted.dimension:
        conditions.append(f"p.pair_id IN ({_better_in(results)})")
        values.append(wanted.dimension)
    return " AND ".join(conditions), values


def _better_in(results: Results) -> str:
    """SELECT of the pairs whose chosen clips are better in a dimension, which is its parameter."""
    table = PREFERENCE_PAIRS.at(results.target).qualified
    return (
        "SELECT pair_id FROM ("
        f"SELECT pair_id, 1 AS sign, unnest(chosen_video_ids) AS video_id FROM {table} UNION ALL "
        f"SELECT pair_id, -1, unnest(rejected_video_ids) FROM {table}) "
        "JOIN (SELECT video_id, unnest(dimensions, recursive := true) "
        f"FROM {VIDEO_REWARDS.at(results.feedback).qualified}) USING (video_id) WHERE dimension = ? "
        "GROUP BY pair_id HAVING avg(score) FILTER (sign = 1) > avg(score) FILTER (sign = -1) + 1e-9"
    )


def _shown(results: Results, rows: Sequence[Row]) -> list[ShownPair]:
    prompts = _by_id(results, [row[f"{side}_prompt_id"] for row in rows for side in ("chosen", "rejected")])
    clips = _clips(results, [name for row in rows for side in ("chosen", "rejected") for name in _videos(row, side)])
    sources = results.sources([row["query_id"] for row in rows])
    return [_pair(results, row, prompts, clips, sources.get(row["query_id"])) for row in rows]


def _videos(row: Row, side: str) -> list[str]:
    return row[f"{side}_video_ids"] or []


def _by_id(results: Results, prompt_ids: Sequence[str | None]) -> dict[str, Row]:
    """Policy, verdict and critique of candidates."""
    found: dict[str, Row] = {}
    for table in (CANDIDATES, CANDIDATE_CRITIQUES):
        for row in results.rows_by(table.at(results.feedback), "prompt_id", prompt_ids):
            found.setdefault(row["prompt_id"], {}).update(row)
    return found


def _clips(results: Results, video_ids: Sequence[str]) -> dict[str, ShownClip]:
    rows = results.lake.query(
        f"SELECT v.*, r.score, r.dimensions, r.answers FROM {VIDEOS.at(results.feedback).qualified} AS v "
        f"LEFT JOIN {VIDEO_REWARDS.at(results.feedback).qualified} AS r ON r.video_id = v.video_id "
        "WHERE v.video_id IN (SELECT unnest(?::VARCHAR[])) ORDER BY v.seed",
        [list(video_ids)],
    ).to_pylist()
    return {row["video_id"]: clip_of(row) for row in rows}


def _pair(
    results: Results, row: Row, prompts: Mapping[str, Row], clips: Mapping[str, ShownClip], source: Source | None
) -> ShownPair:
    query = row["query"] or ""
    pieces = dict(zip(("rejected", "chosen"), differences(row["rejected"], row["chosen"]), strict=True))
    sides = {}
    for name in ("chosen", "rejected"):
        prompt = prompts.get(row[f"{name}_prompt_id"] or "", {})
        own = [clip for video_id, clip in clips.items() if video_id in _videos(row, name)]
        sides[name] = Side(
            name,
            pieces[name],
            row[f"{name}_prompt_id"],
            prompt.get("policy"),
            prompt.get("verdict"),
            prompt.get("critique"),
            own,
        )
    answers, differing = answer_table({name: results.marks(side.clips, query) for name, side in sides.items()})
    return ShownPair(
        row["pair_id"],
        row["query_id"],
        query,
        row["feedback"],
        row["margin"],
        sides["chosen"],
        sides["rejected"],
        [(question, [list(marks) for marks in line]) for question, line in answers],
        differing,
        gains(sides["chosen"].clips, sides["rejected"].clips),
        source,
    )


def gains(clips: Sequence[ShownClip], others: Sequence[ShownClip]) -> dict[str, float]:
    """By how much the mean of some clips is above that of others: in score and in each dimension that both have."""
    own, their = _means(clips), _means(others)
    return {name: value - their[name] for name, value in own.items() if name in their}


def _means(clips: Sequence[ShownClip]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for clip in clips:
        for name, value in {SCORE: clip.score, **clip.dimensions}.items():
            if value is not None:
                values.setdefault(name, []).append(value)
    return {name: fmean(found) for name, found in values.items()}
