"""An evaluation's figures as a card shows them.

Belongs here: laying out the rows of the table `evaluation`. Does not belong here: computing them (evaluation.py).
"""

from typing import Any

from vpo_assets.evaluation_tables import TEXT_METRICS, NothingEvaluated, Row, evaluation_rows
from vpo_assets.platform import Platform
from vpo_assets.report.tables import markdown_table

NAMES = {"original": "original query", "few_shot": "few-shot prompt", "sft": "SFT", "vpo": "VPO"}


def evaluated_method(platform: Platform, target: str, checkpoint_id: str) -> tuple[str, list[Row]]:
    """The method that a checkpoint has in its target's evaluation, and the evaluation's rows. Raises
    NothingEvaluated."""
    rows = evaluation_rows(platform, target)
    methods = {row["method"] for row in rows if row["checkpoint_id"] == checkpoint_id}
    if not methods:
        raise NothingEvaluated(
            f"checkpoint {checkpoint_id} is not in the evaluation of target {target}, and a card without figures says "
            f"nothing: materialize {target}/evaluation for it first"
        )
    if not max((row["n"] or 0 for row in rows), default=0):
        raise NothingEvaluated(
            f"the evaluation of target {target} has no test queries: take in more queries, and materialize "
            f"{target}/evaluation"
        )
    return sorted(methods)[0], rows


def figures_markdown(rows: list[Row], method: str) -> str:
    """Three tables: scores, verdicts, gains. Intervals are those of the evaluation, 95 %."""
    queries = max((row["n"] or 0 for row in rows), default=0)
    parts = [
        f"{queries:,} held-out queries, 95 % intervals; this model is *{NAMES.get(method, method)}*.",
        "Videos, scored by the reward model:",
        markdown_table(_scores(rows)),
        "Prompts, judged, in percent:",
        markdown_table(_verdicts(rows)),
    ]
    gains = _gains(rows)
    if gains:
        parts += ["Gain in score, paired by query:", markdown_table(gains)]
    return "\n\n".join(parts)


def _scores(rows: list[Row]) -> list[dict[str, Any]]:
    wins = {row["method"]: row for row in rows if row["section"] == "video_level" and row["metric"] == "win_rate"}
    return [
        {
            "method": NAMES.get(row["method"], row["method"]),
            "score": _with_interval(row),
            "share of wins against the original": _with_interval(wins[row["method"]])
            if row["method"] in wins
            else None,
        }
        for row in _of(rows, "video_level", "score")
    ]


def _verdicts(rows: list[Row]) -> list[dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {}
    for metric in TEXT_METRICS:
        for row in _of(rows, "text_level", metric):
            name = str(NAMES.get(row["method"], row["method"]))
            table.setdefault(name, {"method": name})[metric] = _with_interval(row, digits=1)
    return list(table.values())


def _gains(rows: list[Row]) -> list[dict[str, Any]]:
    return [
        {
            "method": NAMES.get(row["method"], row["method"]),
            "against": NAMES.get(row["against"], row["against"]),
            "gain": _with_interval(row),
        }
        for row in _of(rows, "gains", "score")
    ]


def _of(rows: list[Row], section: str, metric: str) -> list[Row]:
    """Rows of one figure, methods in the order in which people compare them."""
    order = {name: place for place, name in enumerate(NAMES)}
    found = [row for row in rows if row["section"] == section and row["metric"] == metric and row["value"] is not None]
    return sorted(found, key=lambda row: (order.get(row["method"], len(order)), row["method"], row["against"] or ""))


def _with_interval(row: Row, digits: int = 2) -> str:
    value = f"{row['value']:.{digits}f}"
    if row["low"] is None or row["high"] is None:
        return value
    return f"{value} ({row['low']:.{digits}f} to {row['high']:.{digits}f})"
