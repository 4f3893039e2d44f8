"""Every optimizer on every target's video model: what carries over from one to another.

Belongs here: the asset `transfer`, which lays the evaluations of several targets side by side, paired by query. Does
not belong here: the evaluation of one target (evaluation.py) or the statistics (ml/metrics.py).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from dagster import AssetsDefinition
from rich.table import Table as Grid

from ml.metrics import GainRow, Interval, bootstrap_interval, gains, scores_by_query
from resources.settings import Profile
from storage.ids import content_id
from storage.recipe import JSON
from storage.tables import EVAL_PROMPTS, EVAL_REWARDS, QUERIES, TRANSFER
from vpo_assets.alignment import is_aligned
from vpo_assets.evaluation import EvaluationBranch, evaluated_policies
from vpo_assets.filming import SHEET_ROWS, reward_recipe
from vpo_assets.platform import Platform
from vpo_assets.report.pictures import ContactRow, IntervalBar, LabelledClip, contact_sheet, intervals
from vpo_assets.report.plain_text import one_line
from vpo_assets.report.tables import folding_grid, with_interval
from vpo_assets.steps import Row, SetStep, own_columns
from vpo_assets.table_assets import set_asset
from vpo_assets.target import feedback_source

WRITERS = ("original", "few_shot", "sft")
"""What is the same for every target; any other optimizer was trained for one."""

SHEET_WIDTH = 2100
"""Pixels: three targets' clips of a tiny video model beside each other."""

Cell = tuple[str, str]
"""An optimizer, and the target whose video model filmed its prompts."""


@dataclass(frozen=True)
class Transfer:
    """The comparison's step and asset."""

    step: SetStep
    asset: AssetsDefinition


def build_transfer(evaluations: Sequence[EvaluationBranch]) -> Transfer | None:
    """The comparison, where a profile evaluates more than one target."""
    if len(evaluations) < 2:
        return None
    step = SetStep(
        table=TRANSFER,
        recipe=lambda platform: _recipe(platform, evaluations),
        work=lambda platform, _: _compare(platform, evaluations),
        reads=tuple(step for evaluation in evaluations for step in evaluation.steps),
    )
    asset = set_asset(
        step,
        description="Every optimizer's score on every target's video model, and what it gains, with 95% intervals.",
        deps=[f"{evaluation.target}/evaluation" for evaluation in evaluations],
    )
    return Transfer(step, asset)


def optimizer_names(profile: Profile, policies: dict[str, dict[str, str]]) -> dict[str, str]:
    """{checkpoint id: name}; `policies` are {target: {method: checkpoint id}}.

    A checkpoint is `sft`, or named after the first target that it is the DPO checkpoint of: one that several targets
    come to by the same data and settings is one optimizer.
    """
    names: dict[str, str] = {}
    for target, made in policies.items():
        for method, checkpoint_id in made.items():
            others = profile.targets[target].evaluation.others
            trained_for = target if method == "vpo" else others.get(method, method)
            named = "sft" if method == "sft" else trained_for
            names.setdefault(checkpoint_id, f"vpo for {named}" if named in profile.targets else named)
    return names


def _recipe(platform: Platform, evaluations: Sequence[EvaluationBranch]) -> dict[str, JSON]:
    policies: dict[str, JSON] = {one.target: dict(evaluated_policies(platform, one.target)) for one in evaluations}
    return {"policies": policies}


def _compare(platform: Platform, evaluations: Sequence[EvaluationBranch]) -> tuple[pa.Table, dict[str, Any]]:
    targets = [one.target for one in evaluations]
    policies = {target: evaluated_policies(platform, target) for target in targets}
    names = optimizer_names(platform.profile, policies)
    rewards = pa.concat_tables(_rewards(platform, one, names) for one in evaluations)
    cells = _in_order([_cell(label) for label in dict.fromkeys(rewards["method"].to_pylist())], targets)
    scores = {
        cell: bootstrap_interval(list(by_query.values()))
        for cell, by_query in ((cell, scores_by_query(rewards)[_label(cell)]) for cell in cells)
    }
    alike = _measured_alike(platform, targets)
    compared = comparisons(cells, targets, alike, _bases(platform, targets))
    gained = gains(rewards, [(_label(a), _label(b)) for a, b in compared])
    checkpoints = {name: checkpoint_id for checkpoint_id, name in names.items()}
    rows = [_row(cell, None, score, checkpoints) for cell, score in scores.items()]
    rows += [_row(_cell(gain.method), _cell(gain.against), _interval(gain), checkpoints) for gain in gained]
    looked_at = dict.fromkeys(["original", *(names[made["vpo"]] for made in policies.values())])
    figures = {
        "scores": matrix(rows),
        "gains": [
            {"what": one.method, "against": one.against, "mean": one.mean, "low": one.low, "high": one.high}
            for one in gained
        ],
        "plot": intervals(
            [IntervalBar(_label(cell), score.mean, score.low, score.high) for cell, score in scores.items()],
            "Video-level score with 95% interval",
            "score",
        ),
        "contact_sheet": _sheet(platform, evaluations, names, looked_at),
    }
    return own_columns(TRANSFER, rows), figures


def _sheet(
    platform: Platform, evaluations: Sequence[EvaluationBranch], names: Mapping[str, str], optimizers: Collection[str]
) -> bytes:
    """A few queries, a row for each optimizer's films: the targets side by side."""
    by_row: dict[tuple[str, str], list[LabelledClip]] = {}
    for evaluation in evaluations:
        rows = platform.lake.query(
            "SELECT q.query, coalesce(n.name, v.method) AS optimizer, v.uri, v.sha256 "
            f"FROM {evaluation.videos.present(platform)} AS v JOIN {QUERIES.qualified} AS q USING (query_id) "
            f"JOIN {EVAL_PROMPTS.at(evaluation.target).qualified} AS p USING (prompt_id) "
            "LEFT JOIN names AS n USING (policy) "
            "QUALIFY row_number() OVER (PARTITION BY v.query_id, optimizer ORDER BY v.seed, v.video_id) = 1 "
            f"AND dense_rank() OVER (ORDER BY v.query_id) <= {SHEET_ROWS} ORDER BY v.query_id",
            names=_named(names),
        ).to_pylist()
        for row in rows:
            if row["optimizer"] in optimizers:
                clip = LabelledClip(f"on {evaluation.target}", platform.videos.get(row["uri"], row["sha256"]))
                by_row.setdefault((row["query"], row["optimizer"]), []).append(clip)
    queries = dict.fromkeys(query for query, _ in by_row)
    ordered = [(query, one) for query in queries for one in optimizers if (query, one) in by_row]
    return contact_sheet(
        [ContactRow(f"{query}  ({optimizer})", by_row[query, optimizer]) for query, optimizer in ordered],
        widest=SHEET_WIDTH,
    )


def _rewards(platform: Platform, evaluation: EvaluationBranch, names: dict[str, str]) -> pa.Table:
    """Scores of one target's present videos: query_id, method (the label of a cell), score."""
    target = evaluation.target
    found = platform.lake.query(
        f"SELECT r.query_id, coalesce(n.name, p.method) AS optimizer, r.score FROM {EVAL_REWARDS.at(target).qualified} "
        f"AS r JOIN {EVAL_PROMPTS.at(target).qualified} AS p USING (prompt_id) LEFT JOIN names AS n USING (policy) "
        f"WHERE r.video_id IN (SELECT video_id FROM {evaluation.videos.present(platform)}) ORDER BY ALL",
        names=_named(names),
    )
    labels = [_label((optimizer, target)) for optimizer in found["optimizer"].to_pylist()]
    return pa.table({"query_id": found["query_id"], "method": pa.array(labels, pa.string()), "score": found["score"]})


def _named(names: Mapping[str, str]) -> pa.Table:
    return pa.table({"policy": list(names), "name": list(names.values())})


def comparisons(
    cells: Sequence[Cell], targets: Sequence[str], alike: set[str], bases: Mapping[str, str] | None = None
) -> list[tuple[Cell, Cell]]:
    """Which cells are compared, each pair once: with the user's own words on the same video model; with the other
    targets' optimizers, for the one that was made for it; and, for targets in `alike` (measured by the same reward as
    the first), with the first target's words and with the same optimizer there. `bases` are {target: the target whose
    video model it has an aligned copy of}: it is compared with that one in the same way, optimizer by optimizer."""
    first, bases = targets[0], bases or {}
    found: list[tuple[Cell, Cell]] = []
    for optimizer, target in cells:
        cell = (optimizer, target)
        if optimizer != "original":
            found.append((cell, ("original", target)))
        if optimizer == f"vpo for {target}":
            found += [(cell, other) for other in cells if other[1] == target and other[0] not in (optimizer, *WRITERS)]
        if target != first and target in alike:
            found += [(cell, ("original", first)), (cell, (optimizer, first))]
        if target in bases:
            base = bases[target]
            found += [(cell, ("original", base)), (cell, (optimizer, base))]
            if optimizer == f"vpo for {target}":
                found.append((cell, (f"vpo for {base}", base)))
    return [pair for pair in dict.fromkeys(found) if pair[1] in cells]


def _measured_alike(platform: Platform, targets: Sequence[str]) -> set[str]:
    """The targets whose scores can be compared with the first one's."""
    recipes = {target: reward_recipe(platform, target) for target in targets}
    return {target for target, recipe in recipes.items() if recipe == recipes[targets[0]]}


def _bases(platform: Platform, targets: Sequence[str]) -> dict[str, str]:
    """The targets whose video model is an aligned copy of another's that is evaluated, too, by the same reward."""
    profile = platform.profile
    bases = {target: feedback_source(profile, target) for target in targets if is_aligned(profile, target)}
    return {
        target: base
        for target, base in bases.items()
        if base in targets and reward_recipe(platform, target) == reward_recipe(platform, base)
    }


def _label(cell: Cell) -> str:
    return f"{cell[0]} on {cell[1]}"


def _cell(label: str) -> Cell:
    """Targets have plain names, without a space in them."""
    optimizer, _, target = label.rpartition(" on ")
    return optimizer, target


def _in_order(cells: Sequence[Cell], targets: Sequence[str]) -> list[Cell]:
    """Target by target; in each the methods as people compare them, then the optimizers of the targets."""
    own = [f"vpo for {target}" for target in targets]
    order = [*WRITERS, *own]

    def place(cell: Cell) -> tuple[int, int, str]:
        optimizer, target = cell
        return targets.index(target), order.index(optimizer) if optimizer in order else len(order), optimizer

    return sorted(cells, key=place)


def _interval(gain: GainRow) -> Interval:
    return Interval(gain.mean, gain.low, gain.high, gain.n)


def _row(cell: Cell, against: Cell | None, value: Interval, checkpoints: dict[str, str]) -> Row:
    optimizer, target = cell
    return {
        "transfer_id": content_id(optimizer, target, *(against or ("", ""))),
        "optimizer": optimizer,
        "checkpoint_id": checkpoints.get(optimizer),
        "target": target,
        "against_optimizer": against[0] if against else None,
        "against_target": against[1] if against else None,
        "value": value.mean,
        "low": value.low,
        "high": value.high,
        "n": value.n,
    }


# ---- read back ---------------------------------------------------------------------------------------------------


def transfer_rows(platform: Platform) -> list[Row]:
    """The rows of the comparison, none where it was not made."""
    rows: list[Row] = platform.lake.read(TRANSFER).to_pylist()
    targets = [name for name in platform.profile.targets if any(row["target"] == name for row in rows)]
    order = {
        cell: n for n, cell in enumerate(_in_order([_of(row) for row in rows if row["target"] in targets], targets))
    }
    kept = [row for row in rows if _of(row) in order]
    return sorted(kept, key=lambda row: (order[_of(row)], row["against_target"] or "", row["against_optimizer"] or ""))


def _of(row: Row) -> Cell:
    return row["optimizer"], row["target"]


def matrix(rows: Sequence[Row]) -> list[dict[str, str]]:
    """One line an optimizer, one column a target: the score and its interval."""
    scores = {_of(row): row for row in rows if row["against_target"] is None}
    optimizers = dict.fromkeys(optimizer for optimizer, _ in scores)
    targets = dict.fromkeys(target for _, target in scores)
    return [
        {"optimizer": optimizer, **{t: estimate(scores.get((optimizer, t))) for t in targets}}
        for optimizer in optimizers
    ]


def transfer_summary(rows: Sequence[Row]) -> list[Row]:
    """The comparison as plain data, a dict for each score and gain."""
    names = ("optimizer", "checkpoint_id", "target", "against_optimizer", "against_target", "value", "low", "high", "n")
    return [{name: row[name] for name in names} for row in rows]


def transfer_grids(rows: Sequence[Row]) -> Iterator[Grid]:
    """The matrix and the gains as tables for a terminal; none without rows."""
    if not rows:
        return
    lines = matrix(rows)
    names = list(lines[0])
    scores = folding_grid("Every optimizer on every target's video model (score, 95% interval)", names, left=names)
    for line in lines:
        scores.add_row(*(one_line(value) for value in line.values()))
    yield scores
    columns = ("optimizer", "on", "against", "on", "gain")
    gained = folding_grid("Gain in score between them, paired by query (95% intervals)", columns, left=columns)
    for row in rows:
        if row["against_target"] is not None:
            named = [row[name] for name in ("optimizer", "target", "against_optimizer", "against_target")]
            gained.add_row(*map(one_line, named), estimate(row))
    yield gained


def estimate(row: Row | None) -> str:
    """A score or a gain with its interval; nothing for none."""
    return "" if row is None else with_interval(row["value"], row["low"], row["high"])
