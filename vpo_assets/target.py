"""One branch of the graph per target video model: from sampled candidates to a preference-optimized checkpoint.

Belongs here: candidates, candidate_critiques, videos, video_rewards, preference_pairs and dpo_checkpoint, made by
one factory for every target that the profile lists. Does not belong here: evaluation (evaluation.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from dagster import AssetsDefinition
from numpy.typing import NDArray

from ml.metrics import f_statistic
from ml.preference import average_rewards, select_pairs
from resources.settings import SFT, Profile
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
from vpo_assets.alignment import alignment_assets, is_aligned, video_model_training, video_pairs_step
from vpo_assets.filming import reward_step, video_figures, video_step
from vpo_assets.platform import Platform
from vpo_assets.provenance import other_base
from vpo_assets.sft import SFT_TRAINING, split_queries
from vpo_assets.steps import Made, Row, RowStep, SetStep, joined
from vpo_assets.table_assets import row_asset, set_asset
from vpo_assets.training import Training, checkpoint_asset
from vpo_assets.writing import critique_step, policy_prompts, policy_recipe, verdict_counts


@dataclass(frozen=True)
class Feedback:
    """The steps from a policy's candidates to what text and video say about them."""

    target: str
    candidates: RowStep
    critiques: RowStep
    videos: RowStep
    rewards: RowStep

    @property
    def steps(self) -> tuple[RowStep, ...]:
        """In the order of the method."""
        return self.candidates, self.critiques, self.videos, self.rewards


@dataclass(frozen=True)
class Branch:
    """A target's steps, training and assets."""

    target: str
    steps: tuple[RowStep, ...]
    set_steps: tuple[SetStep, ...]
    training: Training
    assets: tuple[AssetsDefinition, ...]
    alignment: Training | None = None
    """Of the target's video model, where the profile has it aligned."""


def policy_training(profile: Profile, policy: str) -> Training | None:
    """The training of a policy that the profile names: SFT, or a target's DPO. None for the id of a checkpoint."""
    if policy == SFT:
        return SFT_TRAINING
    return dpo_training(policy) if policy in profile.targets else None


def feedback_source(profile: Profile, target: str) -> str:
    """The target whose candidates a target's pairs are selected from: itself, as a rule."""
    settings = profile.targets.get(target)  # of one that was taken out of the profile, rows and checkpoints stay
    return (settings.feedback_from if settings else None) or target


def policy_of(profile: Profile, target: str) -> str:
    """What the profile names as the policy that a target's candidates are sampled from, and its DPO starts from."""
    return profile.targets[feedback_source(profile, target)].candidates.policy


def policy_id(platform: Platform, target: str) -> str:
    """The checkpoint that is."""
    policy = policy_of(platform.profile, target)
    training = policy_training(platform.profile, policy)
    return training.checkpoint_id(platform) if training else policy


def trained_policy(platform: Platform, target: str) -> str:
    """The same, if it is trained."""
    policy = policy_of(platform.profile, target)
    training = policy_training(platform.profile, policy)
    return training.trained(platform) if training else policy


def dpo_training(target: str) -> Training:
    """How a target's preference-optimized checkpoint comes about."""
    return Training(
        stage="dpo",
        target=target,
        data=PREFERENCE_PAIRS.at(target),
        base=lambda platform: str(platform.checkpoints.load(trained_policy(platform, target))[0]),
        base_name=lambda platform: policy_id(platform, target),
        settings=lambda platform: platform.target(target).dpo,
    )


def feedback_steps(target: str) -> Feedback:
    """The steps of a target's own candidates."""
    critiques_table = CANDIDATE_CRITIQUES.at(target)
    videos_table, rewards_table = VIDEOS.at(target), VIDEO_REWARDS.at(target)
    candidates = RowStep(
        table=CANDIDATES.at(target),
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
    return Feedback(target, candidates, critiques, videos, rewards)


def build_branch(target: str, profile: Profile) -> Branch:
    """The branch of one target."""
    source = feedback_source(profile, target)
    feedback, training = feedback_steps(source), dpo_training(target)
    policy = policy_training(profile, policy_of(profile, target)) or SFT_TRAINING
    own = source == target
    pairs = SetStep(
        table=training.data,
        recipe=lambda platform: _pairs_recipe(platform, target),
        work=lambda platform, _: _pairs(platform, target, feedback),
        reads=feedback.steps,
    )
    alignment = video_model_training(target) if is_aligned(profile, target) else None
    films = video_pairs_step(target, feedback.videos, feedback.rewards)
    assets = (
        *(_feedback_assets(feedback, policy) if own else ()),
        set_asset(
            pairs,
            description="Preference pairs: refined over flawed where the judge objects, better filmed over worse "
            "filmed where it does not.",
            deps=[
                f"{source}/candidates",
                f"{source}/candidate_critiques",
                f"{source}/video_rewards",
                "queries",
            ],
        ),
        checkpoint_asset(
            training,
            description="The policy after direct preference optimization on text-level and video-level feedback.",
            deps=[f"{target}/preference_pairs", policy.asset_name],
        ),
        *(alignment_assets(films, alignment, source) if alignment else ()),
    )
    set_steps = (pairs, films) if alignment else (pairs,)
    return Branch(target, feedback.steps if own else (), set_steps, training, assets, alignment)


def _feedback_assets(feedback: Feedback, policy: Training) -> Iterator[AssetsDefinition]:
    target, critiques_table = feedback.target, feedback.critiques.table
    yield row_asset(
        feedback.candidates,
        description="The policy rewrites every DPO query several times.",
        deps=["queries", policy.asset_name],
        kinds={"huggingface"},
        uses_model=True,
    )
    yield row_asset(
        feedback.critiques,
        description="Text-level feedback: the judge's verdict on every candidate, and a refinement of the flawed.",
        deps=[f"{target}/candidates", "queries"],
        kinds={"python"},
        figures=lambda platform: {"verdicts": verdict_counts(platform, critiques_table.qualified)},
    )
    yield row_asset(
        feedback.videos,
        description="The target video model films every candidate that the judge found no flaw in.",
        deps=[f"{target}/candidate_critiques"],
        kinds={"diffusers"},
        uses_model=True,
        figures=lambda platform: video_figures(platform, feedback.videos.table.qualified, QUERIES.qualified),
    )
    yield row_asset(
        feedback.rewards,
        description="Video-level feedback: the reward model's answers about every video, given the user's query.",
        deps=[f"{target}/videos", "queries"],
        kinds={"python"},
        uses_model=True,
        figures=lambda platform: _reward_figures(platform, feedback.rewards.table),
    )


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


def _pairs(platform: Platform, target: str, feedback: Feedback) -> tuple[pa.Table, dict[str, Any]]:
    """At most one pair a query, as the paper selects them. Of rows that were made several times, the present ones."""
    lake, checklist = platform.lake, platform.video_rewards[feedback.target].checklist
    candidates = lake.read(
        feedback.candidates.table,
        columns=["query_id", "prompt_id", "prompt"],
        where=f"prompt_id IN (SELECT prompt_id FROM {feedback.candidates.present(platform)})",
    )
    critiques = lake.read(feedback.critiques.table, columns=["prompt_id", "aligned", "refined"])
    of_present = f"video_id IN (SELECT video_id FROM {feedback.videos.present(platform)})"
    rewards = average_rewards(lake.read(feedback.rewards.table, where=of_present), checklist, use=checklist.counts)
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
