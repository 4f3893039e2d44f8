"""What a prompt optimizer is worth: every method's prompts for the held-out queries, judged, filmed and scored.

Belongs here: eval_prompts, eval_critiques, eval_videos, eval_rewards and evaluation, made by one factory for every
target. Does not belong here: eval_safety (safety_evaluation.py), the statistics (ml/metrics.py) or the page that shows
them (report, report_data.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from dagster import AssetsDefinition

from ml.metrics import (
    GainRow,
    Interval,
    TextLevelRow,
    VideoLevelRow,
    gains,
    text_level_table,
    video_level_table,
)
from ml.prompt_statistics import PromptStatistics, prompt_statistics
from resources.outcome import Outcome
from resources.settings import Profile
from storage.ids import content_id
from storage.recipe import JSON, Recipe
from storage.tables import (
    EVAL_CRITIQUES,
    EVAL_PROMPTS,
    EVAL_REWARDS,
    EVAL_VIDEOS,
    EVALUATION,
    QUERIES,
)
from vpo_assets.evaluation_rows import evaluation_row
from vpo_assets.evaluation_tables import PROMPT_METRICS, methods_of, round_methods, round_sentences, rounds
from vpo_assets.filming import reward_step, video_figures, video_step
from vpo_assets.platform import Platform
from vpo_assets.report.pictures import IntervalBar, intervals
from vpo_assets.report_data import write_report
from vpo_assets.safety_evaluation import rated_methods, safety_asset, safety_rows, safety_step
from vpo_assets.sft import SFT_TRAINING, split_queries
from vpo_assets.steps import Made, Row, RowStep, SetStep, joined, own_columns
from vpo_assets.table_assets import row_asset, set_asset
from vpo_assets.target import Branch, dpo_training, policy_training
from vpo_assets.training import Training
from vpo_assets.writing import critique_step, few_shot_prompts, few_shot_recipe, policy_prompts, policy_recipe

COMPARISONS = (
    ("few_shot", "original"),
    ("sft", "original"),
    ("vpo", "original"),
    ("sft", "few_shot"),
    ("vpo", "few_shot"),
    ("vpo", "sft"),
)
COMPARED_WITH = ("original", "sft", "vpo")
"""What each of the methods is compared with that the profile adds."""


class NothingToEvaluate(RuntimeError):
    """There are no test queries, or none of their videos has a score; says what to do."""


@dataclass(frozen=True)
class EvaluationBranch:
    """The evaluation's steps and assets of one target."""

    target: str
    steps: tuple[RowStep, ...]
    set_steps: tuple[SetStep, ...]
    assets: tuple[AssetsDefinition, ...]
    videos: RowStep


def build_evaluation(branch: Branch, profile: Profile) -> EvaluationBranch:
    """The evaluation of one target's branch."""
    target, training = branch.target, branch.training
    trainings = {"sft": SFT_TRAINING, "vpo": training} | other_trainings(profile, target)
    prompts_table, critiques_table = EVAL_PROMPTS.at(target), EVAL_CRITIQUES.at(target)
    videos_table, rewards_table = EVAL_VIDEOS.at(target), EVAL_REWARDS.at(target)

    prompts = RowStep(
        table=prompts_table,
        inputs=lambda platform: _prompt_inputs(platform, target),
        by_query=lambda platform: not platform.target(target).evaluation.limit,
        recipe=lambda _: {},  # what decides a prompt is another matter for each method, and part of its input id
        work=lambda platform, rows: write_prompts(platform, target, rows, _eval_prompt),
        stage="prompts",
        backends=lambda profile: (profile.language_model, profile.trained_model),
        batch_size=lambda platform: platform.profile.refresh.text_batch,
    )
    critiques = critique_step(critiques_table, prompts)
    videos = video_step(
        target,
        videos_table,
        rewards_table,
        f"SELECT prompt_id, query_id, prompt, method FROM {prompts_table.qualified}",
        lambda platform: platform.target(target).evaluation.seeds_per_prompt,
        prompts,
    )
    rewards = reward_step(target, rewards_table, videos)
    safety = safety_step(target, prompts)
    figures = SetStep(
        table=EVALUATION.at(target),
        recipe=lambda platform: {"policies": list(evaluated_policies(platform, target).values())},
        work=lambda platform, _: _evaluate(platform, target, videos),
        reads=(prompts, critiques, safety, videos, rewards),
        faults=lambda platform: other_policies(platform, prompts, evaluated_policies(platform, target)),
    )
    assets = (
        row_asset(
            prompts,
            description="For every held-out query its own wording, a few-shot prompt, and both checkpoints' prompts.",
            deps=["queries", *dict.fromkeys(one.asset_name for one in trainings.values())],
            kinds={"huggingface"},
            uses_model=True,
        ),
        row_asset(
            critiques,
            description="The judge's verdict on every method's prompts.",
            deps=[f"{target}/eval_prompts", "queries"],
            kinds={"python"},
        ),
        safety_asset(safety, target),
        row_asset(
            videos,
            description="Every method's prompts, filmed by the target video model with the same seeds.",
            deps=[f"{target}/eval_prompts", *([branch.alignment.asset_name] if branch.alignment else [])],
            kinds={"diffusers"},
            uses_model=True,
            figures=lambda platform: video_figures(
                platform,
                videos_table.qualified,
                QUERIES.qualified,
                label="method || ': ' || prompt",
                order=f"list_position({methods_of(platform, target)}, method)",
            ),
        ),
        row_asset(
            rewards,
            description="The reward model's answers about every method's videos, given the user's query.",
            deps=[f"{target}/eval_videos", "queries"],
            kinds={"python"},
            uses_model=True,
        ),
        set_asset(
            figures,
            description="Text-level and video-level tables, win rates and gains with 95% intervals, and the report.",
            deps=[f"{target}/{name}" for name in ("eval_critiques", "eval_safety", "eval_rewards", "dpo_checkpoint")],
        ),
    )
    return EvaluationBranch(target, (prompts, critiques, safety, videos, rewards), (figures,), assets, videos)


def other_trainings(profile: Profile, target: str) -> dict[str, Training]:
    """The trainings behind the methods that the profile adds, as far as they are the profile's own."""
    found = {
        method: policy_training(profile, policy) for method, policy in profile.targets[target].evaluation.others.items()
    }
    return {method: training for method, training in found.items() if training is not None}


def evaluated_policies(platform: Platform, target: str) -> dict[str, str]:
    """The checkpoints that are evaluated: what the present data and settings make, and what is named by its id."""
    trainings = {"sft": SFT_TRAINING, "vpo": dpo_training(target)} | other_trainings(platform.profile, target)
    made = {method: training.checkpoint_id(platform) for method, training in trainings.items()}
    return {**made, **{m: name for m, name in platform.target(target).evaluation.others.items() if m not in made}}


def comparisons(profile: Profile, target: str) -> list[tuple[str, str]]:
    """Pairs of methods, each once: the second is what the first is compared with."""
    more = [(method, other) for method in profile.targets[target].evaluation.others for other in COMPARED_WITH]
    return list(dict.fromkeys([*COMPARISONS, *more, *rounds(profile, target)]))


def _prompt_inputs(platform: Platform, target: str) -> str:
    """Every held-out query with every method; the input id changes with whatever decides the method's prompts."""
    settings = platform.target(target).evaluation
    policies = evaluated_policies(platform, target)
    methods = ", ".join(
        f"('{method}', '{recipe}', {_quoted_or_null(policies.get(method))})"
        for method, recipe in method_recipes(platform, target, policies).items()
    )
    return (
        "SELECT content_id([query_id, query, method, recipe]) AS input_id, query_id, query, method, policy "
        f"FROM ({split_queries('test', settings.limit)}), (VALUES {methods}) AS m(method, recipe, policy)"
    )


def method_recipes(platform: Platform, target: str, policies: Mapping[str, str]) -> dict[str, str]:
    """{method: id of everything beside the query that decides its prompts}, in the order of the evaluation. `policies`
    are `evaluated_policies`."""
    sampling = platform.target(target).evaluation.sampling
    recipes: dict[str, dict[str, JSON]] = {"original": {}, "few_shot": few_shot_recipe(platform)}
    for method, checkpoint_id in policies.items():
        recipes[method] = policy_recipe(platform, checkpoint_id, sampling)
    return {method: Recipe(recipe).id for method, recipe in recipes.items()}


def _quoted_or_null(checkpoint_id: str | None) -> str:
    """A checkpoint id as an SQL literal; ids are plain names, so there is nothing to escape."""
    return "NULL" if checkpoint_id is None else f"'{checkpoint_id}'"


def write_prompts(platform: Platform, target: str, rows: Sequence[Row], make: Callable[[Row, Row], Row]) -> list[Made]:
    """Each row's prompt by its method; `make` puts row and prompt together."""
    made: dict[str, Made] = {}
    ordered = sorted(rows, key=lambda row: str(row["method"]))
    for method, group in groupby(ordered, key=lambda row: str(row["method"])):
        some = list(group)
        written = _written_by(platform, target, method, some)
        made |= {row["input_id"]: one for row, one in zip(some, joined(some, written, make), strict=True)}
    return [made[row["input_id"]] for row in rows]


def _eval_prompt(row: Row, written: Row) -> Row:
    prompt_id = content_id("eval", row["method"], row["input_id"], written["prompt"])
    return {
        "prompt_id": prompt_id,
        "query_id": row["query_id"],
        "method": row["method"],
        "policy": row["policy"],
        **written,
    }


def _written_by(platform: Platform, target: str, method: str, rows: Sequence[Row]) -> list[Outcome[Row]]:
    if method == "original":
        return [{"prompt": row["query"]} for row in rows]
    if method == "few_shot":
        return few_shot_prompts(platform, rows)
    return policy_prompts(platform, str(rows[0]["policy"]), rows, platform.target(target).evaluation.sampling)


def other_policies(platform: Platform, prompts: RowStep, wanted: Mapping[str, str]) -> list[str]:
    """Held-out prompts that were not written by the checkpoints that they are about to be counted for."""
    found = platform.lake.query(
        f"SELECT method, policy, count(*) AS n FROM {prompts.table.qualified} WHERE policy IS NOT NULL GROUP BY ALL "
        "ORDER BY ALL"
    ).to_pylist()
    return [
        f"{prompts.asset} has {row['n']} {row['method']} prompts written by {row['policy']}, the present data and "
        f"settings make {wanted.get(row['method'], 'none')}: refresh {prompts.asset} first"
        for row in found
        if row["policy"] != wanted.get(row["method"])
    ]


def _evaluate(platform: Platform, target: str, filmed: RowStep) -> tuple[pa.Table, dict[str, Any]]:
    """The tables of the evaluation as rows, and as pictures and a report."""
    methods = methods_of(platform, target)
    critiques = _by_method(
        platform.lake.read(EVAL_CRITIQUES.at(target), columns=["query_id", "method", "verdict"]), methods
    )
    rewards = _by_method(
        platform.lake.read(
            EVAL_REWARDS.at(target),
            columns=["query_id", "method", "score", "dimensions"],
            where=f"video_id IN (SELECT video_id FROM {filmed.present(platform)})",
        ),
        methods,
    )
    if not rewards.num_rows:
        raise NothingToEvaluate(_why_nothing(platform, target))
    text_level = text_level_table(critiques)
    video_level = video_level_table(rewards)
    gained = gains(rewards, comparisons(platform.profile, target))
    statistics = prompt_statistics(_by_method(_prompts_with_queries(platform, target), methods))
    policies = evaluated_policies(platform, target)
    rows = [*_text_rows(text_level), *_video_rows(video_level), *_gain_rows(gained), *_prompt_rows(statistics)]
    safety = rated_methods(platform, target, methods)
    rows += safety_rows(safety)
    for row in rows:
        row["checkpoint_id"] = policies.get(row["method"])
        row["evaluation_id"] = content_id(row["section"], row["method"], row["against"] or "", row["metric"])
    pairs = rounds(platform.profile, target)
    curve = round_picture(video_level, pairs) if pairs else None
    report = write_report(
        platform,
        target,
        policies,
        text_level,
        video_level,
        gained,
        statistics,
        safety,
        rounds=curve,
        round_notes=round_sentences(rows, pairs),
    )
    figures = {
        **({"rounds": curve} if curve else {}),
        "report": str(report),
        "text_level": [text_summary(row) for row in text_level],
        "video_level": [video_summary(row) for row in video_level],
        "gains": [gain_summary(row) for row in gained],
        "prompts": [prompt_summary(row) for row in statistics],
        "scores": intervals(
            [IntervalBar(row.method, row.score, row.low, row.high) for row in video_level],
            "Video-level score with 95% interval",
            "score",
        ),
        "gains_plot": intervals(
            [IntervalBar(f"{row.method} − {row.against}", row.mean, row.low, row.high) for row in gained],
            "Gain in score, paired by query, with 95% interval",
            "gain",
            zero_line=True,
        ),
    }
    return own_columns(EVALUATION, rows), figures


def round_picture(video_level: Sequence[VideoLevelRow], pairs: Sequence[tuple[str, str]]) -> bytes:
    """The score with its interval over SFT and the rounds of preference optimization, as a PNG."""
    found = {row.method: row for row in video_level}
    before = dict(pairs)
    bars = [
        IntervalBar(f"{method}, from {before[method]}" if method in before else method, row.score, row.low, row.high)
        for method in round_methods(pairs)
        if (row := found.get(method))
    ]
    return intervals(bars, "Score over the rounds with 95% interval", "score")


def _prompts_with_queries(platform: Platform, target: str) -> pa.Table:
    return platform.lake.query(
        "SELECT p.query_id, p.method, q.query, p.prompt, p.cut "
        f"FROM {EVAL_PROMPTS.at(target).qualified} AS p JOIN {QUERIES.qualified} AS q USING (query_id)"
    )


def _why_nothing(platform: Platform, target: str) -> str:
    held_out = split_queries("test", platform.target(target).evaluation.limit)
    (row,) = platform.lake.query(f"SELECT count(*) AS n FROM ({held_out})").to_pylist()
    if row["n"]:
        return f"none of the {row['n']:,} test queries has a scored video: refresh {target}/eval_rewards first"
    return (
        "there are no test queries: none of the kept queries falls into the share that is held out "
        f"(queries.curation.test_share = {platform.profile.queries.curation.test_share:g}); take in more queries, or "
        "raise that share"
    )


def _by_method(rows: pa.Table, methods: Sequence[str]) -> pa.Table:
    """Rows of these methods, in their order, so that tables come out in the order in which people compare."""
    rows = rows.filter(pc.is_in(rows["method"], pa.array(methods)))
    ranks = pc.index_in(rows["method"], pa.array(methods))
    return rows.append_column("rank", ranks).sort_by([("rank", "ascending"), ("query_id", "ascending")])


def text_summary(row: TextLevelRow) -> dict[str, Any]:
    """One line of the text-level table, in percent."""
    return {
        "method": row.method,
        "aligned": row.aligned,
        "unsafe": row.unsafe,
        "imprecise": row.imprecise,
        "refusal": row.refusal,
    }


def video_summary(row: VideoLevelRow) -> dict[str, Any]:
    """One line of the video-level table."""
    return {
        "method": row.method,
        "score": row.score,
        "low": row.low,
        "high": row.high,
        "wins against original": None if row.win_rate is None else row.win_rate.rate,
        **row.dimensions,
    }


def gain_summary(row: GainRow) -> dict[str, Any]:
    """One line of the table of gains."""
    return {"method": row.method, "against": row.against, "mean": row.mean, "low": row.low, "high": row.high}


def prompt_summary(row: PromptStatistics) -> dict[str, Any]:
    """One line of the table of what prompts are like."""
    return {"method": row.method, **{made["metric"]: made["value"] for made in _prompt_rows([row])}}


def _prompt_rows(table: Sequence[PromptStatistics]) -> list[Row]:
    rows = []
    for row in table:
        means: dict[str, Interval] = {name: getattr(row, name) for name in PROMPT_METRICS}
        rows += [evaluation_row("prompts", row.method, name, mean if mean.n else None) for name, mean in means.items()]
        rows += [
            evaluation_row("prompts", row.method, "distinct_2", None, value=row.distinct_2, n=row.n),
            evaluation_row("prompts", row.method, "self_bleu", None, value=row.self_bleu, n=row.n),
        ]
    return rows


def _text_rows(table: Sequence[TextLevelRow]) -> list[Row]:
    return [
        evaluation_row("text_level", row.method, metric, row.intervals[metric], value=getattr(row, metric))
        for row in table
        for metric in ("aligned", "unsafe", "imprecise", "refusal")
    ]


def _video_rows(table: Sequence[VideoLevelRow]) -> list[Row]:
    rows = []
    for row in table:
        rows.append(evaluation_row("video_level", row.method, "score", Interval(row.score, row.low, row.high, row.n)))
        if row.win_rate is not None:
            won = Interval(row.win_rate.rate, row.win_rate.low, row.win_rate.high, row.win_rate.n)
            rows.append(evaluation_row("video_level", row.method, "win_rate", won, against="original"))
        for name, share in row.dimensions.items():
            rows.append(evaluation_row("video_level", row.method, f"dimension/{name}", None, value=share, n=row.n))
    return rows


def _gain_rows(table: Sequence[GainRow]) -> list[Row]:
    return [
        evaluation_row("gains", row.method, "score", Interval(row.mean, row.low, row.high, row.n), against=row.against)
        for row in table
    ]
