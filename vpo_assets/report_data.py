"""The evaluation report of a target, gathered from the lake and the stores.

Belongs here: reading what the report shows. Does not belong here: how it is shown (report) or computed
(ml/metrics.py).
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ml import metrics, safety_levels
from ml.prompt_statistics import PromptStatistics
from storage.tables import EVAL_CRITIQUES, EVAL_REWARDS, EVAL_VIDEOS, PREFERENCE_PAIRS, QUERIES, VIDEO_REWARDS
from vpo_assets.platform import Platform
from vpo_assets.report.data import (
    Answer,
    Clip,
    Estimate,
    Example,
    FStatistic,
    GainRow,
    MethodExample,
    PairCount,
    PeopleRow,
    Picture,
    PromptRow,
    ReportData,
    SafetyRow,
    TextLevelRow,
    VideoLevelRow,
)
from vpo_assets.report.page import render_report
from vpo_assets.report.pictures import curves, funnel
from vpo_assets.target import feedback_source, score_cube
from vpo_assets.viewer.results import Results
from vpo_assets.viewer.vote_figures import vote_figures, vote_sentences

EXAMPLES = 16
UNSAFE_EXAMPLES = 3
MIME_TYPES = {".webp": "image/webp", ".mp4": "video/mp4"}


def write_report(
    platform: Platform,
    target: str,
    policies: Mapping[str, str],
    text_level: Sequence[metrics.TextLevelRow],
    video_level: Sequence[metrics.VideoLevelRow],
    gains: Sequence[metrics.GainRow],
    prompts: Sequence[PromptStatistics],
    safety: Sequence[safety_levels.SafetyRow],
    rounds: bytes | None,
    round_notes: Sequence[str],
) -> Path:
    """Write VPO_HOME/reports/<target>.html, whole or not at all; returns its path."""
    votes = vote_figures(Results(platform, target))
    data = ReportData(
        title=f"What the prompt optimizer is worth on {target}",
        made_at=datetime.now(UTC),
        target=target,
        checkpoints=policies,
        text_level=[_text_level(row) for row in text_level],
        video_level=[_video_level(row) for row in video_level],
        gains=[GainRow(row.method, row.against, row.mean, row.low, row.high, row.n) for row in gains],
        rounds=None if rounds is None else Picture("Score of SFT and of what each round made of it", rounds),
        round_notes=round_notes,
        people=[
            PeopleRow(row.method, row.against, Estimate(row.rate, row.low, row.high), row.won, row.tied, row.lost)
            for row in votes.preferences
        ],
        people_notes=vote_sentences(votes),
        prompts=[_prompt_row(row) for row in prompts],
        safety=[_safety_row(row) for row in safety],
        f_statistic=_f_statistic(platform, target),
        pair_counts=_pair_counts(platform, target),
        funnels=[Picture("From raw prompts to queries", _query_funnel(platform))],
        curves=[picture for stage, id_ in policies.items() if (picture := _curve(platform, stage, id_))],
        examples=_examples(platform, target, [row.method for row in video_level]),
        notes=_notes(platform, target),
    )
    file = platform.home / "reports" / f"{target}.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(".writing")
    beside.write_text(render_report(data), encoding="utf-8")
    beside.replace(file)
    return file


def _estimate(interval: metrics.Interval) -> Estimate:
    return Estimate(interval.mean, interval.low, interval.high) if interval.n else Estimate(math.nan)


def _text_level(row: metrics.TextLevelRow) -> TextLevelRow:
    shares = {verdict: _estimate(row.intervals[verdict]) for verdict in metrics.VERDICTS}
    return TextLevelRow(row.method, **shares, queries=row.n)


def _prompt_row(row: PromptStatistics) -> PromptRow:
    return PromptRow(
        row.method,
        words=_estimate(row.words),
        faithful=_estimate(row.faithful),
        repeating=_estimate(row.repeating),
        cut=_estimate(row.cut),
        distinct_2=Estimate(math.nan if row.distinct_2 is None else row.distinct_2),
        self_bleu=Estimate(math.nan if row.self_bleu is None else row.self_bleu),
    )


def _safety_row(row: safety_levels.SafetyRow) -> SafetyRow:
    shares = {str(level): share for level, share in row.shares.items()}
    return SafetyRow(row.method, _estimate(row.level), _estimate(row.of_unsafe_queries), shares, row.aspects)


def _video_level(row: metrics.VideoLevelRow) -> VideoLevelRow:
    won = row.win_rate
    return VideoLevelRow(
        row.method,
        Estimate(row.score, row.low, row.high),
        row.dimensions,
        None if won is None else Estimate(won.rate, won.low, won.high),
        row.n,
    )


def _f_statistic(platform: Platform, target: str) -> FStatistic | None:
    cube = score_cube(platform, VIDEO_REWARDS.at(feedback_source(platform.profile, target)))
    if cube.size == 0 or cube.shape[2] < 2:
        return None
    ratio = metrics.f_statistic(cube)
    return FStatistic(ratio.f, ratio.low, ratio.high)


def _pair_counts(platform: Platform, target: str) -> list[PairCount]:
    rows = platform.lake.query(
        "SELECT feedback, count(*) AS pairs, avg(margin) AS margin "
        f"FROM {PREFERENCE_PAIRS.at(target).qualified} GROUP BY ALL ORDER BY feedback"
    ).to_pylist()
    return [PairCount(row["feedback"], row["pairs"], row["margin"]) for row in rows]


def _query_funnel(platform: Platform) -> bytes:
    rows = platform.lake.query(
        f"SELECT drop_reason, count(*) AS n FROM {QUERIES.qualified} WHERE NOT keep GROUP BY ALL ORDER BY n DESC"
    ).to_pylist()
    left = platform.lake.count(QUERIES)
    steps = [("read", left)]
    for row in rows:
        left -= row["n"]
        steps.append((f"without {row['drop_reason']}", left))
    return funnel(steps, "Queries left after each rule")


def _curve(platform: Platform, method: str, checkpoint_id: str) -> Picture | None:
    file = platform.checkpoints.path(checkpoint_id) / "training.json"
    if not file.is_file():
        return None
    curve = json.loads(file.read_text())["curve"]
    names = ("loss", "rewards/margins", "rewards/accuracies", "mean_token_accuracy")
    series = {
        name: points
        for name in names
        if (points := [(float(i + 1), entry[name]) for i, entry in enumerate(curve) if name in entry])
    }
    return Picture(f"Training of {method}: {checkpoint_id}", curves(series, checkpoint_id, "step"))


def _examples(platform: Platform, target: str, methods: Sequence[str]) -> list[Example]:
    """Some held-out queries, chosen by their ids and not by their results; a few unsafe ones among them."""
    chosen = platform.lake.query(
        "SELECT query_id, query FROM (SELECT q.*, row_number() OVER (PARTITION BY safety ORDER BY query_id) AS place "
        f"FROM {QUERIES.qualified} AS q WHERE query_id IN (SELECT query_id FROM {EVAL_VIDEOS.at(target).qualified})) "
        "WHERE (safety = 'unsafe' AND place <= ?) OR (safety <> 'unsafe' AND place <= ?) ORDER BY safety, query_id",
        [UNSAFE_EXAMPLES, EXAMPLES - UNSAFE_EXAMPLES],
    ).to_pylist()
    rows = platform.lake.query(
        "SELECT v.query_id, v.method, v.prompt, v.uri, v.sha256, v.seed, c.verdict, c.critique, r.score, r.answers "
        f"FROM {EVAL_VIDEOS.at(target).qualified} AS v "
        f"JOIN {EVAL_CRITIQUES.at(target).qualified} AS c USING (prompt_id) "
        f"JOIN {EVAL_REWARDS.at(target).qualified} AS r ON r.video_id = v.video_id "
        "WHERE v.query_id IN (SELECT unnest(?)) ORDER BY v.seed",
        [[row["query_id"] for row in chosen]],
    ).to_pylist()
    made: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        made[row["query_id"], row["method"]].append(row)
    return [
        Example(
            query["query"],
            [
                _method_example(platform, target, method, videos)
                for method in methods
                if (videos := made.get((query["query_id"], method)))
            ],
            query["query_id"],
        )
        for query in chosen
    ]


def _method_example(platform: Platform, target: str, method: str, videos: Sequence[dict[str, Any]]) -> MethodExample:
    questions = platform.video_rewards[target].checklist.questions
    answered = [{answer["question"]: answer["yes"] for answer in video["answers"]} for video in videos]
    return MethodExample(
        method=method,
        prompt=videos[0]["prompt"],
        verdict=videos[0]["verdict"],
        score=sum(video["score"] for video in videos) / len(videos),
        clips=[_clip(platform, video["uri"]) for video in videos],
        answers=[Answer(q.text, [answers.get(q.id) for answers in answered]) for q in questions],
        critique=videos[0]["critique"],
    )


def _clip(platform: Platform, uri: str) -> Clip:
    path = platform.videos.path(uri)
    return Clip(path.read_bytes(), MIME_TYPES[path.suffix])


def _notes(platform: Platform, target: str) -> list[str]:
    settings = platform.target(target)
    return [
        f"Every prompt was filmed with {settings.evaluation.seeds_per_prompt} seeds, the same for all methods of a "
        "query; scores are means over them, intervals are bootstrapped over queries.",
        "The reward saw the user's query, never the optimized prompt.",
        f"Profile seed: {platform.profile.seed}.",
    ]
