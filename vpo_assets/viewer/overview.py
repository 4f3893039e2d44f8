"""The first page: what the methods are worth, here and on other targets, what people voted, where queries went, how
training went.

Belongs here: reading the figures that are there. Does not belong here: computing an evaluation (evaluation.py).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from storage.tables import (
    CANDIDATE_CRITIQUES,
    CANDIDATES,
    CHECKPOINTS,
    DRAFTS,
    EVAL_PROMPTS,
    EVAL_REWARDS,
    EVAL_VIDEOS,
    PREFERENCE_PAIRS,
    QUERIES,
    SFT_DATASET,
    Table,
)
from vpo_assets.alignment_table import alignment_summary
from vpo_assets.evaluation_tables import NothingEvaluated, evaluation_rows, evaluation_summary
from vpo_assets.report.data import Estimate, VideoLevelRow
from vpo_assets.report.grids import Chart, score_chart
from vpo_assets.transfer import estimate, matrix, transfer_rows
from vpo_assets.viewer.charts import Line, Step, funnel, line
from vpo_assets.viewer.results import Results
from vpo_assets.viewer.vote_figures import VoteFigures, vote_figures

CURVES = {
    "loss": "loss",
    "rewards/accuracies": "pairs ranked rightly",
    "rewards/margins": "reward margin",
    "mean_token_accuracy": "tokens guessed rightly",
}


@dataclass(frozen=True)
class MethodFigures:
    """One method's figures: score with its interval, share of won queries, verdicts in per cent."""

    method: str
    score: float | None
    low: float | None
    high: float | None
    won: float | None
    aligned: float | None
    unsafe: float | None


@dataclass(frozen=True)
class Aligned:
    """One cell of VPO against Diffusion-DPO and both together: what it is, and its figures with their intervals."""

    target: str
    what: str
    score: str
    gain: str
    gain_of_both: str


@dataclass(frozen=True)
class Trained:
    """One checkpoint and its training curves."""

    checkpoint_id: str
    stage: str
    base: str
    curves: Sequence[Line]


@dataclass(frozen=True)
class Overview:
    """Everything on the first page. `methods` is empty where nothing was evaluated; then `missing` says what to do."""

    target: str
    queries: int
    methods: Sequence[MethodFigures]
    missing: str
    scores: Chart
    transfer: Sequence[Mapping[str, str]]
    """A line an optimizer: `optimizer`, and its score under the name of each target; none with one target only."""
    aligned: Sequence[Aligned]
    votes: VoteFigures
    funnels: Sequence[tuple[str, Sequence[Step]]]
    trained: Sequence[Trained]


def overview(results: Results) -> Overview:
    """The first page of a target, as it is now."""
    missing = ""
    rows: list[dict[str, Any]] = []
    try:
        rows = evaluation_rows(results.platform, results.target)
    except NothingEvaluated as nothing:
        missing = str(nothing)
    methods = _methods(rows)
    scores = [
        VideoLevelRow(row.method, Estimate(row.score, row.low, row.high), {})
        for row in methods
        if row.score is not None
    ]
    between = transfer_rows(results.platform)
    return Overview(
        target=results.target,
        queries=evaluation_summary(rows)["queries"] if rows else 0,
        methods=methods,
        missing=missing,
        scores=score_chart(scores),
        transfer=matrix(between),
        aligned=[
            Aligned(row["target"], row["what"], *(estimate(row[name]) for name in ("score", "gain", "gain_of_both")))
            for row in alignment_summary(results.platform.profile, between)
        ],
        votes=vote_figures(results),
        funnels=_funnels(results),
        trained=_trained(results),
    )


def _methods(rows: list[dict[str, Any]]) -> list[MethodFigures]:
    if not rows:
        return []
    summary = evaluation_summary(rows)
    won = {row["method"]: row["value"] for row in rows if row["metric"] == "win_rate"}
    text = {row["method"]: row for row in summary["text_level"]}
    video = {row["method"]: row for row in summary["video_level"]}
    return [
        MethodFigures(
            name,
            video.get(name, {}).get("score"),
            video.get(name, {}).get("low"),
            video.get(name, {}).get("high"),
            won.get(name),
            text.get(name, {}).get("aligned"),
            text.get(name, {}).get("unsafe"),
        )
        for name in dict.fromkeys([*text, *video])
    ]


def _funnels(results: Results) -> list[tuple[str, list[Step]]]:
    """How many queries got as far as each step, for each use of queries."""
    target, feedback = results.target, results.feedback
    return [
        ("Queries", _query_funnel(results)),
        ("To learn writing from", _reached(results, "sft", ("drafted", DRAFTS), ("in the SFT set", SFT_DATASET))),
        (
            "To learn preferences from",
            _reached(
                results,
                "dpo",
                ("with candidates", CANDIDATES.at(feedback)),
                ("judged", CANDIDATE_CRITIQUES.at(feedback)),
                ("in a pair", PREFERENCE_PAIRS.at(target)),
            ),
        ),
        (
            "Held out",
            _reached(
                results,
                "test",
                ("with prompts", EVAL_PROMPTS.at(target)),
                ("filmed", EVAL_VIDEOS.at(target)),
                ("scored", EVAL_REWARDS.at(target)),
            ),
        ),
    ]


def _query_funnel(results: Results) -> list[Step]:
    left = results.lake.count(QUERIES)
    steps = [("read", left)]
    rows = results.lake.query(
        f"SELECT drop_reason, count(*) AS n FROM {QUERIES.qualified} WHERE NOT keep GROUP BY ALL ORDER BY n DESC, 1"
    ).to_pylist()
    for row in rows:
        left -= row["n"]
        steps.append((f"without {row['drop_reason']}", left))
    return funnel([*steps, ("kept", left)])


def _reached(results: Results, split: str, *steps: tuple[str, Table]) -> list[Step]:
    """Queries of a split, and those of them that are in each table."""
    kept = f"SELECT query_id FROM {QUERIES.qualified} WHERE keep AND split = ?"
    tables = [f"SELECT query_id FROM {table.qualified} WHERE query_id IN ({kept})" for _, table in steps]
    columns = ", ".join(
        f"(SELECT count(DISTINCT query_id) FROM ({sql})) AS c{n}" for n, sql in enumerate([kept, *tables])
    )
    (row,) = results.lake.query(f"SELECT {columns}", [split] * (1 + len(steps))).to_pylist()
    names = ["kept for it", *(name for name, _ in steps)]
    return funnel([(name, row[f"c{n}"]) for n, name in enumerate(names)])


def _trained(results: Results) -> list[Trained]:
    """The last checkpoint of each stage, the first stage first."""
    rows = results.lake.query(
        f"SELECT checkpoint_id, stage, base FROM {CHECKPOINTS.qualified} WHERE target IS NULL OR target = ? "
        "QUALIFY row_number() OVER (PARTITION BY stage ORDER BY made_at DESC, checkpoint_id) = 1 ORDER BY stage DESC",
        [results.target],
    ).to_pylist()
    return [
        Trained(row["checkpoint_id"], row["stage"], row["base"] or "", _curves(results, row["checkpoint_id"]))
        for row in rows
    ]


def _curves(results: Results, checkpoint_id: str) -> list[Line]:
    file = results.platform.checkpoints.path(checkpoint_id) / "training.json"
    if not file.is_file():
        return []
    logged = json.loads(file.read_text(encoding="utf-8"))["curve"]
    found = []
    for name, title in CURVES.items():
        values = [
            (float(entry.get("step", n + 1)), float(entry[name])) for n, entry in enumerate(logged) if name in entry
        ]
        drawn = line(title, values)
        if drawn is not None:
            found.append(drawn)
    return found
