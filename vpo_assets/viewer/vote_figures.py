"""What blind votes say: who wins, how far people agree with each other and with the reward.

Belongs here: reading votes and laying figures out for a terminal, JSON and a page. Does not belong here: the
statistics (ml/votes.py), voting (voting.py).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table as Grid

from ml.metrics import Interval, bootstrap_interval
from ml.votes import Agreement, Ballot, Preference, agreement, preferences
from storage.tables import EVAL_REWARDS, EVAL_VIDEOS, VOTES
from vpo_assets.report.plain_text import one_line
from vpo_assets.viewer.results import Results, Row


@dataclass(frozen=True)
class VoteFigures:
    """Figures of the votes on the videos that are there now. `with_reward`: of the votes for one side, the share for
    the clip that the reward scores higher. `outdated`: votes on videos that are gone, in no figure."""

    votes: int
    skipped: int
    outdated: int
    annotators: int
    preferences: Sequence[Preference]
    agreement: Agreement
    with_reward: Interval


def vote_figures(results: Results) -> VoteFigures:
    """The figures of all votes on a target."""
    table, videos = VOTES.at(results.target), EVAL_VIDEOS.at(results.target)
    rewards = EVAL_REWARDS.at(results.target)
    present = f"SELECT video_id FROM {videos.qualified}"
    rows: list[Row] = results.lake.query(
        f"SELECT v.*, a.score AS left_score, b.score AS right_score FROM {table.qualified} AS v "
        f"LEFT JOIN {rewards.qualified} AS a ON a.video_id = v.left_video_id "
        f"LEFT JOIN {rewards.qualified} AS b ON b.video_id = v.right_video_id "
        f"WHERE left_video_id IN ({present}) AND right_video_id IN ({present}) ORDER BY vote_id"
    ).to_pylist()
    counted = [row for row in rows if row["choice"] != "skip"]
    by_comparison: dict[str, list[str]] = {}
    for row in counted:
        by_comparison.setdefault(row["comparison_id"], []).append(_preferred_video(row))
    return VoteFigures(
        votes=len(counted),
        skipped=len(rows) - len(counted),
        outdated=results.lake.count(table) - len(rows),
        annotators=len({row["annotator"] for row in counted}),
        preferences=preferences([_ballot(row) for row in counted], results.methods),
        agreement=agreement(by_comparison.values()),
        with_reward=_with_reward(counted),
    )


def _ballot(row: Row) -> Ballot:
    preferred = None if row["choice"] == "tie" else row[f"{row['choice']}_method"]
    return Ballot(row["query_id"], row["annotator"], row["left_method"], row["right_method"], preferred)


def _preferred_video(row: Row) -> str:
    """first, second or tie. Videos are told apart by the order of their ids, which nobody sees and which is random:
    were they told apart by method, agreement would look worse the more often one method wins."""
    if row["choice"] == "tie":
        return "tie"
    ordered = sorted((row["left_video_id"], row["right_video_id"]))
    return ("first", "second")[ordered.index(row[f"{row['choice']}_video_id"])]


def _with_reward(rows: Sequence[Row]) -> Interval:
    """Over comparisons, as several votes on one do not stand alone."""
    found: dict[str, list[float]] = {}
    for row in rows:
        left, right = row["left_score"], row["right_score"]
        if row["choice"] != "tie" and left is not None and right is not None and left != right:
            found.setdefault(row["comparison_id"], []).append((row["choice"] == "left") == (left > right))
    return bootstrap_interval([sum(values) / len(values) for values in found.values()])


def vote_summary(figures: VoteFigures) -> dict[str, Any]:
    """The figures as plain data; null where nothing can be said."""
    return {
        "votes": figures.votes,
        "skipped": figures.skipped,
        "outdated": figures.outdated,
        "annotators": figures.annotators,
        "preferences": [{**asdict(row), "votes": row.votes} for row in figures.preferences],
        "agreement": {
            "krippendorff_alpha": _or_none(figures.agreement.alpha),
            "share": _or_none(figures.agreement.share),
            "comparisons": figures.agreement.units,
        },
        "with_reward": {
            "share": _or_none(figures.with_reward.mean),
            "low": _or_none(figures.with_reward.low),
            "high": _or_none(figures.with_reward.high),
            "comparisons": figures.with_reward.n,
        },
    }


def vote_sentences(figures: VoteFigures) -> list[str]:
    """What the table of votes does not say."""
    said = []
    if not math.isnan(figures.agreement.share):
        alpha = "" if math.isnan(figures.agreement.alpha) else f", Krippendorff's alpha {figures.agreement.alpha:.2f}"
        said.append(
            f"Two people give the same answer {figures.agreement.share:.0%} of the time{alpha} "
            f"({figures.agreement.units} comparisons with several votes)."
        )
    else:
        said.append("Nobody has voted on what another has, so agreement cannot be told.")
    if figures.with_reward.n:
        reward = figures.with_reward
        said.append(
            f"People prefer the clip that the reward scores higher {reward.mean:.0%} of the time "
            f"[{reward.low:.0%}, {reward.high:.0%}] ({reward.n} comparisons)."
        )
    if figures.skipped:
        said.append(f"{figures.skipped} skipped.")
    if figures.outdated:
        said.append(f"{figures.outdated} more are votes on videos that were since made anew.")
    return said


def vote_grid(figures: VoteFigures) -> Grid:
    """The votes as a table for a terminal."""
    people = "1 person" if figures.annotators == 1 else f"{figures.annotators} people"
    grid = Grid(title=f"Blind votes ({figures.votes} by {people}, 95% intervals)", title_justify="left")
    for name in ("method", "against", "preferred", "interval", "won", "tied", "lost", "queries"):
        grid.add_column(name, justify="left" if name in ("method", "against") else "right")
    for row in figures.preferences:
        grid.add_row(
            one_line(row.method),
            one_line(row.against),
            f"{row.rate:.0%}",
            f"{row.low:.0%} to {row.high:.0%}",
            *map(str, (row.won, row.tied, row.lost, row.queries)),
        )
    return grid


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
