"""VBench on a target: its prompts through every method, filmed by the target's video model, scored by the package.

Belongs here: vbench_prompts, vbench_videos, vbench_scores and vbench, made for a target whose evaluation has a section
vbench; and how its figures are read back. Does not belong here: running the package (resources/vbench_scorer.py), or
the evaluation on one's own held-out queries (evaluation.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from dagster import AssetsDefinition
from rich.table import Table as Grid

from ml.metrics import Interval, bootstrap_interval, gains, scores_by_query
from resources.settings import METHODS, Profile
from resources.vbench_scorer import VbenchPrompt, VbenchScorer
from resources.vbench_settings import VBENCH_DIMENSIONS, VbenchSettings
from storage.ids import content_id
from storage.tables import VBENCH, VBENCH_PROMPTS, VBENCH_SCORES, VBENCH_VIDEOS
from vpo_assets.evaluation import (
    comparisons,
    evaluated_policies,
    method_recipes,
    other_policies,
    other_trainings,
    write_prompts,
)
from vpo_assets.filming import video_figures, video_step
from vpo_assets.platform import Platform
from vpo_assets.report import published
from vpo_assets.report.plain_text import one_line
from vpo_assets.report.tables import folding_grid, with_interval
from vpo_assets.sft import SFT_TRAINING
from vpo_assets.steps import Made, Row, RowStep, SetStep, joined, own_columns
from vpo_assets.table_assets import row_asset, set_asset
from vpo_assets.target import Branch

PERCENT = 100.0
ROW = ("dimension", "method", "against", "value", "low", "high", "n", "checkpoint_id")


class NothingScored(RuntimeError):
    """No video of VBench's queries has a score; says what to do."""


@dataclass(frozen=True)
class VbenchBranch:
    """VBench's steps and assets of one target."""

    target: str
    steps: tuple[RowStep, ...]
    set_steps: tuple[SetStep, ...]
    assets: tuple[AssetsDefinition, ...]


def build_vbench(branch: Branch, profile: Profile) -> VbenchBranch | None:
    """VBench of one target's branch; None where its evaluation has no section vbench."""
    target = branch.target
    if vbench_settings(profile, target) is None:
        return None
    videos_table, scores_table = VBENCH_VIDEOS.at(target), VBENCH_SCORES.at(target)
    prompts = RowStep(
        table=VBENCH_PROMPTS.at(target),
        inputs=lambda platform: _prompt_inputs(platform, target),
        by_query=lambda _: False,
        recipe=lambda _: {},  # what decides a prompt is another matter for each method, and part of its input id
        work=lambda platform, rows: write_prompts(platform, target, rows, _prompt_row),
        stage="prompts",
        backends=lambda profile: (profile.language_model, profile.trained_model),
        batch_size=lambda platform: platform.profile.refresh.text_batch,
    )
    videos = video_step(
        target,
        videos_table,
        scores_table,
        f"SELECT prompt_id, query_id, prompt, method FROM {prompts.table.qualified}",
        lambda platform: _settings(platform, target).videos_per_prompt,
        prompts,
    )
    scores = RowStep(
        table=scores_table,
        inputs=lambda _: _score_inputs(target),
        recipe=lambda platform: {"vbench": dict(_scorer(platform, target).identity())},
        work=lambda platform, rows: _score(platform, target, rows),
        stage="rewards",
        backends=lambda profile: (profile.targets[target].video_reward,),
        batch_size=lambda platform: _settings(platform, target).batch,
        reads=(videos,),
    )
    figures = SetStep(
        table=VBENCH.at(target),
        recipe=lambda platform: {"policies": dict(_policies(platform, target))},
        work=lambda platform, _: _compare(platform, target, videos),
        reads=(prompts, videos, scores),
        faults=lambda platform: other_policies(platform, prompts, _policies(platform, target)),
    )
    trainings = [SFT_TRAINING, branch.training, *other_trainings(profile, target).values()]
    queries = f"(SELECT DISTINCT query_id, query FROM {prompts.table.qualified})"
    assets = (
        row_asset(
            prompts,
            description="For every query of VBench its own wording, and every method's prompt.",
            deps=list(dict.fromkeys(one.asset_name for one in trainings)),
            kinds={"huggingface"},
            uses_model=True,
        ),
        row_asset(
            videos,
            description="These prompts, filmed by the target video model with the same seeds.",
            deps=[f"{target}/vbench_prompts", *([branch.alignment.asset_name] if branch.alignment else [])],
            kinds={"diffusers"},
            uses_model=True,
            figures=lambda platform: video_figures(
                platform, videos_table.qualified, queries, label="method || ': ' || prompt", order="method"
            ),
        ),
        row_asset(
            scores,
            description="VBench's score of each video on its query's dimension.",
            deps=[f"{target}/vbench_videos"],
            kinds={"python"},
            uses_model=True,
        ),
        set_asset(
            figures,
            description="VBench's dimensions per method, and what each gains, with 95% intervals.",
            deps=[f"{target}/vbench_scores", f"{target}/vbench_prompts"],
        ),
    )
    return VbenchBranch(target, (prompts, videos, scores), (figures,), assets)


def vbench_settings(profile: Profile, target: str) -> VbenchSettings | None:
    """The section of a target that is evaluated; None where there is none."""
    settings = profile.targets[target]
    return settings.evaluation.vbench if settings.evaluated else None


def _settings(platform: Platform, target: str) -> VbenchSettings:
    settings = vbench_settings(platform.profile, target)
    assert settings is not None  # else there is no step that asks
    return settings


def _scorer(platform: Platform, target: str) -> VbenchScorer:
    fps = platform.target(target).video_generator.fps
    return VbenchScorer(_settings(platform, target), fps=fps, folder=platform.home / "sent_clips")


def vbench_methods(profile: Profile, target: str) -> list[str]:
    """What is compared, in the order of the evaluation."""
    settings = profile.targets[target].evaluation
    everything = [*METHODS, *settings.others]
    chosen = settings.vbench.methods if settings.vbench else None
    return [method for method in everything if chosen is None or method in chosen]


def _policies(platform: Platform, target: str) -> dict[str, str]:
    methods = vbench_methods(platform.profile, target)
    return {method: name for method, name in evaluated_policies(platform, target).items() if method in methods}


# ---- prompts and scores --------------------------------------------------------------------------------------------


def _prompt_inputs(platform: Platform, target: str) -> pa.Table:
    """Every query of VBench's with every method; the input id changes with whatever decides the method's prompts."""
    methods = vbench_methods(platform.profile, target)
    policies = evaluated_policies(platform, target)
    recipes = {method: one for method, one in method_recipes(platform, target, policies).items() if method in methods}
    rows = [
        {
            "input_id": content_id("vbench", asked.dimension, asked.prompt, method, recipe),
            "query_id": content_id("vbench", asked.dimension, asked.prompt),
            "dimension": asked.dimension,
            "query": asked.prompt,
            "method": method,
            "policy": policies.get(method),
        }
        for asked in _scorer(platform, target).prompts()
        for method, recipe in recipes.items()
    ]
    names = ("input_id", "query_id", "dimension", "query", "method", "policy")
    return pa.Table.from_pylist(rows, schema=pa.schema([(name, pa.string()) for name in names]))


def _prompt_row(row: Row, written: Row) -> Row:
    return {
        "prompt_id": content_id("vbench", row["input_id"], written["prompt"]),
        **{name: row[name] for name in ("query_id", "dimension", "query", "method", "policy")},
        **written,
    }


def _score_inputs(target: str) -> str:
    return (
        "SELECT content_id([v.video_id, v.sha256, p.dimension, p.query]) AS input_id, v.*, p.dimension, p.query "
        f"FROM {VBENCH_VIDEOS.at(target).qualified} AS v "
        f"JOIN (SELECT prompt_id, dimension, query FROM {VBENCH_PROMPTS.at(target).qualified}) AS p USING (prompt_id)"
    )


def _score(platform: Platform, target: str, rows: Sequence[Row]) -> list[Made]:
    """VBench's score of each row's video, against VBench's own prompt."""
    clips = [platform.videos.get(row["uri"], row["sha256"]) for row in rows]
    asked = [VbenchPrompt(row["dimension"], row["query"]) for row in rows]
    given = _scorer(platform, target).score(asked, clips)
    names = ("video_id", "prompt_id", "query_id", "seed", "method", "dimension")
    return joined(rows, given, lambda row, score: {**{name: row[name] for name in names}, "score": score})


# ---- figures -------------------------------------------------------------------------------------------------------


def _compare(platform: Platform, target: str, videos: RowStep) -> tuple[pa.Table, dict[str, Any]]:
    """The dimensions as rows, and as tables to look at."""
    methods = vbench_methods(platform.profile, target)
    scores = platform.lake.read(
        VBENCH_SCORES.at(target),
        columns=["query_id", "method", "dimension", "score"],
        where=f"video_id IN (SELECT video_id FROM {videos.present(platform)})",
    )
    if not scores.num_rows:
        raise NothingScored(f"no video of VBench's queries has a score: refresh {target}/vbench_scores first")
    policies = _policies(platform, target)
    found: list[Row] = []
    for dimension in _settings(platform, target).dimensions:
        found += _of_dimension(dimension, _of(scores, dimension, methods), comparisons(platform.profile, target))
    for row in found:
        row["checkpoint_id"] = policies.get(row["method"])
        row["vbench_id"] = content_id(row["dimension"], row["method"], row["against"] or "")
    return own_columns(VBENCH, found), {
        "scores": [*matrix(found), *({**one, "method": f"published: {one['method']}"} for one in published_lines())],
        "gains": [
            {name: row[name] for name in ("dimension", "method", "against", "value", "low", "high")}
            for row in found
            if row["against"] is not None
        ],
    }


def _of(scores: pa.Table, dimension: str, methods: Sequence[str]) -> pa.Table:
    """Scores on one dimension, in per cent, in the order of the methods."""
    names = pa.array(methods, pa.string())
    own = scores.filter(pc.and_(pc.equal(scores["dimension"], dimension), pc.is_in(scores["method"], names)))
    ranked = own.append_column("rank", pc.index_in(own["method"], names)).sort_by("rank")
    return ranked.set_column(ranked.column_names.index("score"), "score", pc.multiply(ranked["score"], PERCENT))


def _of_dimension(dimension: str, scores: pa.Table, pairs: Sequence[tuple[str, str]]) -> list[Row]:
    """A row for each method, and one for each pair of methods that both have scores."""
    by_method = scores_by_query(scores)
    rows = [
        _row(dimension, method, None, bootstrap_interval(list(by_query.values())))
        for method, by_query in by_method.items()
    ]
    shared = [(a, b) for a, b in pairs if a in by_method and by_method[a].keys() & by_method.get(b, {}).keys()]
    return rows + [
        _row(dimension, gain.method, gain.against, Interval(gain.mean, gain.low, gain.high, gain.n))
        for gain in gains(scores, shared)
    ]


def _row(dimension: str, method: str, against: str | None, value: Interval) -> Row:
    return {
        "dimension": dimension,
        "method": method,
        "against": against,
        "value": value.mean,
        "low": value.low,
        "high": value.high,
        "n": value.n,
    }


# ---- read back -----------------------------------------------------------------------------------------------------


def vbench_rows(platform: Platform, target: str) -> list[Row]:
    """The rows of a target's VBench figures, in the order of dimensions and methods; none where there are none."""
    if vbench_settings(platform.profile, target) is None:
        return []
    methods = vbench_methods(platform.profile, target)
    rows: list[Row] = platform.lake.read(VBENCH.at(target)).to_pylist()

    def place(row: Row) -> tuple[int, int, int]:
        against = row["against"]
        return (
            VBENCH_DIMENSIONS.index(row["dimension"]),
            methods.index(row["method"]),
            methods.index(against) if against in methods else -1,
        )

    known = [row for row in rows if row["method"] in methods and row["dimension"] in VBENCH_DIMENSIONS]
    return sorted(known, key=place)


def vbench_summary(rows: Sequence[Row]) -> list[Row]:
    """The figures as plain data, a dict for each score and gain."""
    return [{name: row[name] for name in ROW} for row in rows]


def matrix(rows: Sequence[Row]) -> list[dict[str, str]]:
    """One line a method, one column a dimension: the score in per cent with its interval."""
    scores = {(row["method"], row["dimension"]): row for row in rows if row["against"] is None}
    dimensions = [name for name in VBENCH_DIMENSIONS if any(of == name for _, of in scores)]
    return [
        {"method": method, **{named(name): _estimate(scores.get((method, name))) for name in dimensions}}
        for method in dict.fromkeys(method for method, _ in scores)
    ]


def named(dimension: str) -> str:
    """As the paper writes it."""
    return dimension.replace("_", " ")


def published_lines() -> list[dict[str, str]]:
    """The paper's lines for CogVideoX-2B in the layout of `matrix`."""
    columns = {named(name): published.VIDEO_LEVEL_METRICS.index(named(name)) for name in VBENCH_DIMENSIONS}
    return [
        {"method": method, **{name: f"{values[place]:.2f}" for name, place in columns.items()}}
        for method, values in published.VIDEO_LEVEL
    ]


def vbench_grids(rows: Sequence[Row]) -> list[Grid]:
    """The figures as tables for a terminal, the published ones below ours; none without rows."""
    if not rows:
        return []
    lines = matrix(rows)
    names = list(lines[0])
    scores = folding_grid("VBench, % (95% intervals; below: published, CogVideoX-2B)", names, left=names)
    for line in lines:
        scores.add_row(*(one_line(line[name]) for name in lines[0]))
    scores.add_section()
    for line in published_lines():
        scores.add_row(*(line[name] for name in lines[0]))
    columns = ("dimension", "method", "against", "gain")
    gained = folding_grid("Gain on VBench, paired by query (95% intervals)", columns, left=columns)
    for row in rows:
        if row["against"] is not None:
            gained.add_row(named(row["dimension"]), row["method"], row["against"], _estimate(row))
    return [scores, gained]


def _estimate(row: Row | None) -> str:
    return "" if row is None else with_interval(row["value"], row["low"], row["high"], 2)
