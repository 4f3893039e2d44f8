"""VPO against Diffusion-DPO, and both together: four cells of the comparison of targets, as people read them.

Belongs here: choosing and showing those cells. Does not belong here: computing them (transfer.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table as Grid

from resources.settings import Profile
from vpo_assets.alignment import is_aligned
from vpo_assets.report.tables import folding_grid
from vpo_assets.steps import Row
from vpo_assets.target import feedback_source
from vpo_assets.transfer import estimate

Cell = tuple[str, str]
ESTIMATE = ("value", "low", "high", "n")


@dataclass(frozen=True)
class Comparison:
    """What an aligned target's four cells are: {what people call it: (optimizer, target)}, the baseline first, both
    together last."""

    target: str
    cells: dict[str, Cell]


def alignment_comparisons(profile: Profile, rows: Sequence[Row]) -> list[Comparison]:
    """One comparison for every aligned target whose four cells have scores."""
    scored = {(row["optimizer"], row["target"]) for row in rows if row["against_target"] is None}
    found = []
    for target in profile.targets:
        if not is_aligned(profile, target):
            continue
        base = feedback_source(profile, target)
        own = f"vpo for {target}"
        both = own if (own, target) in scored else f"vpo for {base}"  # one checkpoint has one name
        cells = {
            "the user's query": ("original", base),
            "Diffusion-DPO": ("original", target),
            "VPO": (f"vpo for {base}", base),
            "both": (both, target),
        }
        if scored.issuperset(cells.values()):
            found.append(Comparison(target, cells))
    return found


def alignment_summary(profile: Profile, rows: Sequence[Row]) -> list[Row]:
    """The comparisons as plain data: for each cell its score, its gain over the baseline, and that of both over it."""
    return [
        {
            "target": comparison.target,
            "what": what,
            "score": _estimate(rows, cell, None),
            "gain": _estimate(rows, cell, comparison.cells["the user's query"]),
            "gain_of_both": _estimate(rows, comparison.cells["both"], cell),
        }
        for comparison in alignment_comparisons(profile, rows)
        for what, cell in comparison.cells.items()
    ]


def alignment_grids(profile: Profile, rows: Sequence[Row]) -> Iterator[Grid]:
    """The comparisons as tables for a terminal; none where no target is aligned."""
    summary = alignment_summary(profile, rows)
    for target in dict.fromkeys(row["target"] for row in summary):
        title = f"VPO against Diffusion-DPO ({target}; 95% intervals, gains paired by query)"
        columns = ("", "score", "gain over the user's query", "gain of both over it")
        grid = folding_grid(title, columns, left=columns)
        for row in summary:
            if row["target"] == target:
                grid.add_row(row["what"], *(estimate(row[name]) for name in ("score", "gain", "gain_of_both")))
        yield grid


def _estimate(rows: Sequence[Row], cell: Cell, against: Cell | None) -> Row | None:
    wanted = (*cell, *(against or (None, None)))
    names = ("optimizer", "target", "against_optimizer", "against_target")
    found = next((row for row in rows if tuple(row[name] for name in names) == wanted), None)
    return None if found is None else {name: found[name] for name in ESTIMATE}
