"""Plans to look at: for the terminal, for Dagster, as JSON.

Belongs here: laying out plans and summing them up. Does not belong here: making them (planning.py).
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE
from rich.table import Table as Grid

from vpo_assets.plan_words import duration
from vpo_assets.planning import AssetPlan
from vpo_assets.report.tables import markdown_table

NOTHING = "·"


def grid(plans: Sequence[AssetPlan]) -> Grid:
    """The plans as a table for a terminal. Of text it has names of assets only."""
    rows = plan_rows(plans)
    shown = Grid(box=SIMPLE, pad_edge=False, collapse_padding=True)
    for name in rows[0] if rows else ():
        shown.add_column(name, justify="left" if name == "asset" else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row.values())
    return shown


def markdown(plans: Sequence[AssetPlan]) -> str:
    """The plans as a Markdown table, with the reasons in a last column, and the total below."""
    reasons = ["; ".join(plan.why) for plan in plans]
    rows = [{**row, "why": why} for row, why in zip(plan_rows(plans), reasons, strict=True)]
    return f"{markdown_table(rows)}\n\n{total(plans)}"


def plan_rows(plans: Sequence[AssetPlan]) -> list[dict[str, str]]:
    """A dict of shown values for each plan; money only where any asset costs money."""
    priced = any(plan.priced for plan in plans)
    return [_row(plan) | ({"money": _money(plan)} if priced else {}) for plan in plans]


def as_json(plans: Sequence[AssetPlan]) -> dict[str, Any]:
    """Everything as plain data; unknown figures are null."""
    seconds, money = _known(plans)
    return {
        "assets": [asdict(plan) for plan in plans],
        "expected_seconds": seconds,
        "seconds_unknown_for": _unknown_seconds(plans),
        "money": money,
        "money_unknown_for": _unknown_money(plans),
    }


def total(plans: Sequence[AssetPlan]) -> str:
    """One line: how much there is to do, how long it should take, what it should cost, and for what that is unknown."""
    seconds, money = _known(plans)
    expected = sum(plan.todo if plan.expected is None else plan.expected for plan in plans)
    sure = all(plan.certain for plan in plans)
    said = f"{'' if sure else '~'}{expected:,} to do, expected {duration(seconds)}"
    if names := _unknown_seconds(plans):
        said += f" and an unknown time for {', '.join(names)}"
    if any(plan.priced for plan in plans):
        said += f"; {money:,.2f} in money"
        if names := _unknown_money(plans):
            said += f" and an unknown sum for {', '.join(names)}"
    return said


def _row(plan: AssetPlan) -> dict[str, str]:
    counts = {
        "new": plan.new,
        "stale": plan.stale,
        "reused": plan.reused,
        "gone": plan.orphaned,
        "failed": plan.failed,
    }
    return {
        "asset": plan.asset,
        **{name: f"{count:,}" if count else NOTHING for name, count in counts.items()},
        "to do": _todo(plan),
        "time": NOTHING if plan.idle or plan.expected_seconds == 0 else duration(plan.expected_seconds),
    }


def _todo(plan: AssetPlan) -> str:
    if plan.certain:
        return f"{plan.todo:,}" if plan.todo else NOTHING
    return "unknown" if plan.expected is None else f"~{plan.expected:,}"


def _money(plan: AssetPlan) -> str:
    if not plan.priced or plan.idle:
        return NOTHING
    return "unknown" if plan.money is None else f"{plan.money:,.2f}"


def _known(plans: Sequence[AssetPlan]) -> tuple[float, float]:
    return sum(plan.expected_seconds or 0.0 for plan in plans), sum(plan.money or 0.0 for plan in plans)


def _unknown_seconds(plans: Sequence[AssetPlan]) -> list[str]:
    return [plan.asset for plan in plans if plan.expected_seconds is None]


def _unknown_money(plans: Sequence[AssetPlan]) -> list[str]:
    return [plan.asset for plan in plans if plan.money is None]
