"""One branch of the graph per target video model: from sampled candidates to a preference-optimized checkpoint.

Belongs here: candidates, candidate_critiques, videos, video_rewards, preference_pairs and dpo_checkpoint, made by
one factory for every target that the profile lists. Does not belong here: evaluation (evaluation.py).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from dagster import AssetsDefinition
from numpy.typing import NDArray

from ml.metrics import f_statistic
from ml.preference import average_rewards, select_pairs
from storage.ids import content_id
from storage.recipe import JSON
from storage.tables import (
    CANDIDATE_CRITIQUES,
    CANDIDATES,
    MESSAGES,
    PREFERENCE_PAIRS,
    QUERIES,
    VIDEO_REWARDS,
    VIDEOS,
    Table,
)
from vpo_assets.filming import reward_step, video_figures, video_step
from vpo_assets.platform import Platform
from vpo_assets.provenance import other_base
from vpo_assets.sft import SFT_TRAINING, split_queries
from vpo_assets.steps import Made, Row, RowStep, SetStep, joined
from vpo_assets.table_assets import row_asset, set_asset
from vpo_assets.training import Training, checkpoint_asset
from vpo_assets.writing import critique_step, policy_prompts, policy_recipe, verdict_counts


@dataclass(frozen=True)
class Branch:
    """A target's steps, training and assets."""

    target: str
    steps: tuple[RowStep, ...]
    set_steps: tuple[SetStep, ...]
    training: Training
    assets: tuple[AssetsDefinition, ...]


def policy_id(platform: Platform, target: str) -> str:
    """The checkpoint that a target's candidates are sampled from: SFT's, or the one the profile names."""
    policy = platform.target(target).candidates.policy
    return SFT_TRAINING.checkpoint_id(platform) if policy == "sft" else policy


def trained_policy(platform: Platform, target: str) -> str:
    """The same, if it is trained."""
    policy = platform.target(target).candidates.policy
    return SFT_TRAINING.trained(platform) if policy == "sft" else policy


def build_branch(target: str) -> Branch:
    """The branch of one target."""
    candidates_table, critiques_table = CANDIDATES.at(target), CANDIDATE_CRITIQUES.at(target)
    videos_table, rewards_table = VIDEOS.at(target), VIDEO_REWARDS.at(target)
    pairs_table = PREFERENCE_PAIRS.at(target)

    candidates = RowStep(
        table=candidates_table,
        inputs=lambda platform: _candidate_inputs(platform, target),
        by_query=lambda platform: not platform.target(target).candidates.limit,
        recipe=lambda platform: policy_recipe(
            platform, policy_id(platform, target), platform.target(target).candidates.sampling
        ),
        work=lambda platform, rows: _sample(platform, target, rows),
        stage="prompts",
        backends=lambda profile: (profile.trained_model,),
        batch_size=lambda platform: platform.profile.refresh.text_batch,
        faults=lambda platform: other_base(platform, policy_id(platform, target)),
    )
    critiques = critique_step(critiques_table, candidates)
    videos = video_step(
        target,
        videos_table,
        rewards_table,
        f"SELECT prompt_id, query_id, prompt FROM {critiques_table.qualified} WHERE aligned",
        lambda platform: platform.target(target).seeds_per_prompt,
        critiques,
    )
    rewards = reward_step(target, rewards_table, videos)
    pairs = SetStep(
        table=pairs_table,
        recipe=lambda platform: _pairs_recipe(platform, target),
        work=lambda platform, _: _pairs(platform, target, candidates, videos),
        reads=(candidates, critiques, videos, rewards),
    )
    training = Training(
        stage="dpo",
        target=target,
        data=pairs_table,
        base=lambda platform: str(platform.checkpoints.load(trained_policy(platform, target))[0]),
        base_name=lambda platform: policy_id(platform, target),
        settings=lambda platform: platform.target(target).dpo,
    )
    assets = (
        row_asset(
            candidates,
            description="The policy rewrites every DPO query several times.",
            deps=["queries", "sft_checkpoint"],
            kinds={"huggingface"},
            uses_model=True,
        ),
        row_asset(
            critiques,
            description="Text-level feedback: the judge's verdict on every candidate, and a refinement of the flawed.",
            deps=[f"{target}/candidates", "queries"],
            kinds={"python"},
            figures=lambda platform: {"verdicts": verdict_counts(platform, critiques_table.qualified)},
        ),
        row_asset(
            videos,
            description="The target video model films every candidate that the judge found no flaw in.",
            deps=[f"{target}/candidate_critiques"],
            kinds={"diffusers"},
            uses_model=True,
            figures=lambda platform: video_figures(platform, videos_table.qualified, QUERIES.qualified),
        ),
        row_asset(
            rewards,
            description="Video-level feedback: the reward model's answers about every video, given the user's query.",
            deps=[f"{target}/videos", "queries"],
            kinds={"python"},
            uses_model=True,
            figures=lambda platform: _reward_figures(platform, rewards_table),
        ),
        set_asset(
            pairs,
            description="Preference pairs: refined over flawed where the judge objects, better filmed over worse "
            "filmed where it does not.",
            deps=[
                f"{target}/candidates",
                f"{target}/candidate_critiques",
                f"{target}/video_rewards",
                "queries",
            ],
        ),
        checkpoint_asset(
            training,
            description="The policy after direct preference optimization on text-level and video-level feedback.",
            deps=[f"{target}/preference_pairs", "sft_checkpoint"],
        ),
    )
    return Branch(target, (candidates, critiques, videos, rewards), (pairs,), training, assets)


def _candidate_inputs(platform: Platform, target: str) -> str:
    settings = platform.target(target).candidates
    source = split_queries("dpo", settings.limit)
    policy = policy_id(platform, target).replace("'", "''")
    return (
        f"SELECT content_id([query_id, query, k::VARCHAR]) AS input_id, query_id, query, k, '{policy}' AS policy "
        f"FROM ({source}), range({int(settings.per_query)}) AS r(k)"
    )


def _sample(platform: Platform, target: str, rows: Sequence[Row]) -> list[Made]:
    """One candidate a row."""
    policy = str(rows[0]["policy"])
    written = policy_prompts(platform, policy, rows, platform.target(target).candidates.sampling)
    return joined(rows, written, lambda row, columns: _candidate(policy, row, columns))


def _candidate(policy: str, row: Row, written: Row) -> Row:
    prompt_id = content_id("candidate", row["query_id"], str(row["k"]), policy, written["prompt"])
    return {"prompt_id": prompt_id, "query_id": row["query_id"], "k": row["k"], "policy": policy, **written}


def _pairs_recipe(platform: Platform, target: str) -> dict[str, JSON]:
    return {
        "pairs": platform.target(target).pairs.model_dump(mode="json"),
        "template": platform.template("optimize").hash,
    }


def _pairs(platform: Platform, target: str, sampled: RowStep, filmed: RowStep) -> tuple[pa.Table, dict[str, Any]]:
    """At most one pair a query, as the paper selects them. Of rows that were made several times, the present ones."""
    lake, checklist = platform.lake, platform.video_rewards[target].checklist
    candidates = lake.read(
        sampled.table,
        columns=["query_id", "prompt_id", "prompt"],
        where=f"prompt_id IN (SELECT prompt_id FROM {sampled.present(platform)})",
    )
    critiques = lake.read(CANDIDATE_CRITIQUES.at(target), columns=["prompt_id", "aligned", "refined"])
    of_present = f"video_id IN (SELECT video_id FROM {filmed.present(platform)})"
    rewards = average_rewards(lake.read(VIDEO_REWARDS.at(target), where=of_present), checklist, use=checklist.counts)
    settings = platform.target(target).pairs
    selection = select_pairs(candidates.sort_by("prompt_id"), critiques, rewards, checklist, settings)
    queries = lake.read(QUERIES, columns=["query_id", "query"])
    asked = dict(zip(queries["query_id"].to_pylist(), queries["query"].to_pylist(), strict=True))
    template = platform.template("optimize")
    messages = [template.messages(query=asked[query_id]) for query_id in selection.rows["query_id"].to_pylist()]
    pairs = selection.rows.append_column("messages", pa.array(messages, MESSAGES))
    counts = [{"what": name.replace("_", " "), "count": value} for name, value in asdict(selection.counts).items()]
    return pairs.select([column.name for column in PREFERENCE_PAIRS.columns]), {"counts": counts}


def score_cube(platform: Platform, rewards_table: Table) -> NDArray[np.float64]:
    """Scores as (queries, prompts, seeds), NaN where there is none; queries with fewer than two prompts left out.

    Where a prompt was filmed several times with one seed, the last film counts.
    """
    rows = platform.lake.query(
        "SELECT query_id, dense_rank() OVER (PARTITION BY query_id ORDER BY prompt_id) - 1 AS prompt, "
        "row_number() OVER (PARTITION BY prompt_id ORDER BY seed) - 1 AS seed, score "
        f"FROM (FROM {rewards_table.qualified} QUALIFY row_number() OVER "
        "(PARTITION BY prompt_id, seed ORDER BY made_at DESC, video_id) = 1) ORDER BY query_id"
    ).to_pylist()
    if not rows:
        return np.empty((0, 0, 0))
    ids = {query_id: i for i, query_id in enumerate(dict.fromkeys(row["query_id"] for row in rows))}
    shape = (len(ids), 1 + max(row["prompt"] for row in rows), 1 + max(row["seed"] for row in rows))
    cube = np.full(shape, np.nan)
    for row in rows:
        cube[ids[row["query_id"]], row["prompt"], row["seed"]] = row["score"]
    compared = np.isfinite(cube).any(2).sum(1) >= 2
    kept: NDArray[np.float64] = cube[compared]
    return kept


def _reward_figures(platform: Platform, rewards_table: Table) -> dict[str, Any]:
    shares = platform.lake.query(
        "SELECT a.question, round(avg(a.yes::INT), 3) AS share_of_yes, round(avg(a.probability), 3) AS probability "
        f"FROM (SELECT unnest(answers) AS a FROM {rewards_table.qualified}) GROUP BY ALL ORDER BY ALL"
    )
    figures: dict[str, Any] = {"answers": shares}
    cube = score_cube(platform, rewards_table)
    if cube.size and cube.shape[2] > 1:
        ratio = f_statistic(cube)
        figures["F_prompts_against_seeds"] = round(float(ratio.f), 2)
    return figures
