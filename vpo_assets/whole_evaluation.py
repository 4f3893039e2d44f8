"""What `vpo evaluation` prints: every evaluated target, then what is compared between targets.

Belongs here: putting the parts together, as tables and as plain data. Does not belong here: any of the parts
(evaluation_tables.py, vbench.py, viewer/vote_figures.py, transfer.py, alignment_table.py) or computing them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.rule import Rule
from rich.table import Table as Grid

from vpo_assets.alignment_table import alignment_grids, alignment_summary
from vpo_assets.evaluation_tables import (
    NothingEvaluated,
    chosen_target,
    evaluation_grids,
    evaluation_rows,
    evaluation_summary,
    round_sentences,
    rounds,
)
from vpo_assets.platform import Platform
from vpo_assets.report.plain_text import one_line
from vpo_assets.transfer import transfer_grids, transfer_rows, transfer_summary
from vpo_assets.vbench import vbench_grids, vbench_rows, vbench_summary
from vpo_assets.viewer.results import Results
from vpo_assets.viewer.vote_figures import vote_figures, vote_grid, vote_sentences, vote_summary

Part = Grid | Rule | str
"""A table, a line between two targets, or a sentence, whose text is not yet safe to print."""


def targets_to_show(platform: Platform, target: str | None) -> list[str]:
    """The target asked for, else all that the profile evaluates. Raises UnknownTarget."""
    if target is not None:
        return [chosen_target(platform, target)]
    return [name for name in platform.profile.targets if platform.target(name).evaluated]


def whole_summary(platform: Platform, targets: Sequence[str]) -> dict[str, Any]:
    """The evaluation as plain data: `targets` with the figures of each that has some, `transfer` and `alignment`.
    Raises NothingEvaluated where no target has any."""
    transfer = transfer_rows(platform)
    evaluated, missing = _by_target(platform, targets)
    if not evaluated:
        raise missing[0]
    of_targets = {
        target: {
            **evaluation_summary(rows),
            "people": vote_summary(vote_figures(Results(platform, target))),
            "vbench": vbench_summary(vbench_rows(platform, target)),
        }
        for target, rows in evaluated.items()
    }
    return {
        "targets": of_targets,
        "transfer": transfer_summary(transfer),
        "alignment": alignment_summary(platform.profile, transfer),
    }


def whole_evaluation(platform: Platform, targets: Sequence[str]) -> Iterator[Part]:
    """The evaluation for a terminal, part by part; a target without any is a sentence that says what makes one. Raises
    NothingEvaluated where no target has any."""
    evaluated, missing = _by_target(platform, targets)
    if not evaluated:
        raise missing[0]
    for target, rows in evaluated.items():
        if len(targets) > 1:
            yield Rule(one_line(target), align="left")
        yield from _of_one(platform, target, rows)
    for error in missing:
        yield str(error)
    transfer = transfer_rows(platform)
    if transfer and len(targets) > 1:
        yield Rule("between targets", align="left")
    yield from transfer_grids(transfer)
    yield from alignment_grids(platform.profile, transfer)


def _of_one(platform: Platform, target: str, rows: list[dict[str, Any]]) -> Iterator[Part]:
    yield from evaluation_grids(rows)
    yield from vbench_grids(vbench_rows(platform, target))
    yield from round_sentences(rows, rounds(platform.profile, target))
    votes = vote_figures(Results(platform, target))
    if votes.votes:
        yield vote_grid(votes)
        yield from vote_sentences(votes)
    report = platform.home / "reports" / f"{target}.html"
    if report.exists():
        yield f"With plots and clips: {report}"


def _by_target(
    platform: Platform, targets: Sequence[str]
) -> tuple[dict[str, list[dict[str, Any]]], list[NothingEvaluated]]:
    """The rows of the targets that have an evaluation, and what to say of the others."""
    evaluated: dict[str, list[dict[str, Any]]] = {}
    missing: list[NothingEvaluated] = []
    for target in targets:
        try:
            evaluated[target] = evaluation_rows(platform, target)
        except NothingEvaluated as nothing:
            missing.append(nothing)
    return evaluated, missing
