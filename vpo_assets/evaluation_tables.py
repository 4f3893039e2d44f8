"""The evaluation as people and programs ask for it: read back from the lake.

Belongs here: the shape of `vpo evaluation` and which checkpoint came out best. Does not belong here: computing
anything (evaluation.py).
"""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table as Grid

from resources.settings import METHODS, Profile
from storage.tables import EVALUATION
from vpo_assets.platform import Platform
from vpo_assets.report.plain_text import one_line
from vpo_assets.report.tables import folding_grid
from vpo_assets.safety_evaluation import safety_grids, safety_summary
from vpo_assets.target import policy_of

TEXT_METRICS = ("aligned", "unsafe", "imprecise", "refusal")
PROMPT_METRICS = ("words", "faithful", "repeating", "cut", "unsafe_terms")
"""Means with intervals, of ml.prompt_statistics."""
PROMPT_FIGURES = (*PROMPT_METRICS, "distinct_2", "self_bleu")
DIMENSION = "dimension/"

Row = dict[str, Any]


class NothingEvaluated(LookupError):
    """A target that has no evaluation yet; says what makes one."""


class UnknownTarget(ValueError):
    """A target that the profile does not list."""


def chosen_target(platform: Platform, target: str | None) -> str:
    """The target asked for, or the profile's only one that is evaluated. Raises UnknownTarget."""
    targets = list(platform.profile.targets)
    evaluated = [name for name in targets if platform.target(name).evaluated]
    if target is None and len(evaluated) == 1:
        return evaluated[0]
    if target not in targets:
        asked = f"there is no target {one_line(target, 80)!r}" if target else "there are several targets"
        raise UnknownTarget(f"{asked}; name one with --target: {', '.join(targets)}")
    return target


def methods_of(platform: Platform, target: str) -> list[str]:
    """What a target's evaluation compares, in that order."""
    return [*METHODS, *platform.target(target).evaluation.others]


def rounds(profile: Profile, target: str) -> list[tuple[str, str]]:
    """Methods that are a round more of another method: each with the one that it went on from."""
    others = profile.targets[target].evaluation.others
    trained_for = {name: method for method, name in {"vpo": target, **others}.items()}
    policies = {method: policy_of(profile, name) for method, name in others.items() if name in profile.targets}
    return [(method, trained_for[policy]) for method, policy in policies.items() if policy in trained_for]


def round_methods(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """SFT, VPO, and the methods that are a round more of another, in the order of training."""
    before = dict(pairs)

    def rounds_before(method: str) -> int:
        return 1 + rounds_before(before[method]) if method in before else 0

    return ["sft", *sorted(dict.fromkeys(["vpo", *before]), key=rounds_before)]


def round_sentences(rows: list[Row], pairs: Iterable[tuple[str, str]]) -> list[str]:
    """What each round more has brought, and whether to go on. The rule: as long as the interval of the last gain is
    clear of zero."""
    found = {(row["method"], row["against"]): row for row in rows if row["section"] == "gains"}
    lines = []
    for pair in pairs:
        row = found.get(pair)
        if row is None:
            continue
        advice = "another round may pay" if row["low"] > 0 else "it was a step back" if row["high"] < 0 else "stop here"
        interval = f"[{_number(row['low'], 2)}, {_number(row['high'], 2)}]"
        lines.append(f"{pair[0]} went on from {pair[1]} and gained {_number(row['value'], 2)} {interval}: {advice}")
    return lines


def evaluation_rows(platform: Platform, target: str) -> list[Row]:
    """The rows of a target's evaluation. Raises NothingEvaluated."""
    rows: list[Row] = platform.lake.read(EVALUATION.at(target)).to_pylist()
    if not rows:
        raise NothingEvaluated(
            f"target {target} has no evaluation yet: run `vpo materialize {target}/evaluation`, "
            "or `vpo materialize` for everything it needs"
        )
    return rows


def evaluation_summary(rows: list[Row]) -> dict[str, Any]:
    """The evaluation as nested plain data: `queries`, `text_level` (percent), `video_level`, `safety`, `prompts`,
    `gains`."""
    text = _by(rows, "text_level")
    video = _by(rows, "video_level")
    prompts = _by(rows, "prompts")
    return {
        "queries": max((row["n"] or 0 for row in rows), default=0),
        "text_level": [
            {"method": method, **{name: _value(text, method, name) for name in TEXT_METRICS}}
            for method in _methods(rows, "text_level")
        ],
        "video_level": [
            {
                "method": method,
                "score": _value(video, method, "score"),
                "low": video.get((method, "score"), {}).get("low"),
                "high": video.get((method, "score"), {}).get("high"),
                **{name: _value(video, method, DIMENSION + name) for name in dimensions(rows)},
            }
            for method in _methods(rows, "video_level")
        ],
        "safety": sorted(safety_summary(rows), key=lambda row: _rank(row["method"])),
        "prompts": [
            {"method": method, **{name: _value(prompts, method, name) for name in PROMPT_FIGURES}}
            for method in _methods(rows, "prompts")
        ],
        "gains": [
            {
                "method": row["method"],
                "against": row["against"],
                "mean": row["value"],
                "low": row["low"],
                "high": row["high"],
            }
            for row in sorted(
                (row for row in rows if row["section"] == "gains" and row["metric"] == "score"),
                key=lambda row: (_rank(row["against"]), _rank(row["method"])),
            )
        ],
    }


def dimensions(rows: list[Row]) -> list[str]:
    """Names of the reward's dimensions, in alphabetical order."""
    found = {row["metric"] for row in rows if row["section"] == "video_level"}
    return sorted(name.removeprefix(DIMENSION) for name in found if name.startswith(DIMENSION))


def evaluation_grids(rows: list[Row]) -> list[Grid]:
    """The evaluation as tables for a terminal: text level, video level, dimensions, gains, safety, prompts."""
    summary = evaluation_summary(rows)
    queries = summary["queries"]
    text = _grid(f"Text level, % of prompts ({queries} queries)", ("method", *TEXT_METRICS))
    for row in summary["text_level"]:
        text.add_row(row["method"], *(_number(row[name], 1) for name in TEXT_METRICS))
    names = dimensions(rows)
    wins = {row["method"]: row["value"] for row in rows if row["metric"] == "win_rate"}
    video = _grid(f"Video level ({queries} queries, 95% intervals)", ("method", "score", "interval", "wins"))
    for row in summary["video_level"]:
        video.add_row(
            row["method"],
            _number(row["score"]),
            f"{_number(row['low'])} to {_number(row['high'])}",
            f"{wins[row['method']]:.0%}" if row["method"] in wins else "",
        )
    methods = [row["method"] for row in summary["video_level"]]
    shares = _grid("Share of yes by dimension", ("dimension", *methods))
    for name in names:
        shares.add_row(one_line(name), *(_number(row[name], 2) for row in summary["video_level"]))
    gains = _grid("Gain in score, paired by query (95% intervals)", ("method", "against", "mean", "interval"))
    for row in summary["gains"]:
        interval = f"{_number(row['low'])} to {_number(row['high'])}"
        gains.add_row(row["method"], row["against"], _number(row["mean"]), interval)
    prompts = _grid("What prompts are like, whatever the reward says", ("method", *PROMPT_FIGURES))
    for row in summary["prompts"]:
        prompts.add_row(row["method"], *(_number(row[name], 1 if name == "words" else 2) for name in PROMPT_FIGURES))
    return [text, video, shares, gains, *safety_grids(summary["safety"]), prompts]


def best_checkpoint(rows: list[Row]) -> tuple[str, str, float]:
    """Id, method and score of the evaluated checkpoint with the highest video-level score.

    Raises NothingEvaluated if no checkpoint was evaluated.
    """
    scores = [
        (row["value"], row["checkpoint_id"], row["method"])
        for row in rows
        if row["section"] == "video_level" and row["metric"] == "score" and row["checkpoint_id"]
    ]
    if not scores:
        raise NothingEvaluated("no checkpoint has a video-level score: materialize the evaluation, or name one")
    score, checkpoint_id, method = max(scores)
    return checkpoint_id, method, score


def _by(rows: list[Row], section: str) -> dict[tuple[str, str], Row]:
    return {(row["method"], row["metric"]): row for row in rows if row["section"] == section}


def _value(rows: dict[tuple[str, str], Row], method: str, metric: str) -> float | None:
    value: float | None = rows.get((method, metric), {}).get("value")
    return value


def _methods(rows: list[Row], section: str) -> list[str]:
    return sorted({row["method"] for row in rows if row["section"] == section}, key=_rank)


def _rank(method: str | None) -> tuple[int, str]:
    """Methods in the order in which people compare them; others behind."""
    return (METHODS.index(method) if method in METHODS else len(METHODS), method or "")


def _grid(title: str, columns: Sequence[str]) -> Grid:
    return folding_grid(title, columns, left=("against",))


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"
