"""Plans in words: what differs between recipes, how many rows that concerns, how long it takes.

Belongs here: wording that the command line, Dagster's logs and the provenance checks share. Does not belong here:
making plans (planning.py) or laying them out (plan_report.py).
"""

from typing import Any

from storage.differences import ABSENT, Difference
from storage.plan import Plan
from vpo_assets.report.plain_text import one_line

LONGEST_VALUE = 48
MOST_SETTINGS = 6


def changed(differences: tuple[Difference, ...] | None) -> str:
    """`sampling.temperature 0.7 -> 0.9, code 1 -> 2`; values of any length or kind are cut to be short."""
    if differences is None:
        return "a recipe that the lake no longer knows"
    said = [_difference(one) for one in differences[:MOST_SETTINGS]]
    more = len(differences) - len(said)
    return ", ".join(said) + (f" and {more} more" if more else "")


def reasons(plan: Plan) -> tuple[str, ...]:
    """Why there is something to do, a line for each reason; empty where nothing is."""
    lines = [f"{one.rows:,} stale: {changed(one.differences)}" for one in plan.stale_by]
    again = plan.stale - sum(one.rows for one in plan.stale_by)
    if again > 0:
        lines.append(f"{again:,} stale: their file is gone or damaged, or all was asked for again")
    if plan.new:
        lines.append(f"{plan.new:,} new: inputs that have no row yet, or that changed")
    if plan.orphaned:
        lines.append(f"{plan.orphaned:,} gone: rows whose input is no longer there")
    if plan.failed:
        given_up = f", of which {plan.given_up:,} are given up until their recipe changes" if plan.given_up else ""
        lines.append(f"{plan.failed:,} failed before{given_up}")
    return tuple(lines)


def in_one_line(plan: Plan) -> str:
    """The whole plan of a table, for its asset's log."""
    counts = [
        f"{value:,} {name}"
        for name, value in (
            ("new", plan.new),
            ("stale", plan.stale),
            ("reused", plan.reused),
            ("gone", plan.orphaned),
            ("failed before", plan.failed),
        )
        if value
    ]
    stale = "; ".join(changed(one.differences) for one in plan.stale_by)
    time = f", expected {duration(plan.expected_seconds)}" if plan.todo.num_rows else ""
    return f"plan of {plan.table.label}: {', '.join(counts) or 'nothing there'}; {plan.todo.num_rows:,} to do{time}" + (
        f" (stale because of {stale})" if stale else ""
    )


def duration(seconds: float | None) -> str:
    """`2 h 05 min`, `40 s`; `unknown` for None."""
    if seconds is None:
        return "unknown"
    if seconds < 1:
        return "under 1 s" if seconds else "0 s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _difference(difference: Difference) -> str:
    if difference.before is ABSENT:
        return f"{one_line(difference.name)} is new ({_value(difference.after)})"
    if difference.after is ABSENT:
        return f"{one_line(difference.name)} is gone ({_value(difference.before)})"
    return f"{one_line(difference.name)} {_value(difference.before)} -> {_value(difference.after)}"


def _value(value: Any) -> str:
    text = "none" if value is None else f"{value:g}" if isinstance(value, float) else one_line(value)
    if len(text) >= 16 and all(character in "0123456789abcdef" for character in text):
        return text[:8]  # a hash: enough to tell two apart
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
