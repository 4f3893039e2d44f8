"""How prompts become videos and videos become scores, wherever in the graph that is.

Belongs here: the work that candidates' and held-out prompts' videos have in common. Does not belong here: which
prompts are filmed.
"""

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ml.checklist import Checklist
from resources.video_reward import Answer
from storage.ids import content_id
from storage.recipe import JSON
from storage.tables import QUERIES, Table
from storage.videos import VideoFile
from vpo_assets.alignment import untrained_video_model, video_model_id
from vpo_assets.platform import Platform
from vpo_assets.report.pictures import ContactRow, LabelledClip, contact_sheet
from vpo_assets.steps import Made, Row, RowStep, joined
from vpo_assets.writing import method_of

SHEET_ROWS = 6


def video_step(
    target: str, videos: Table, rewards: Table, prompts: str, seeds: Callable[[Platform], int], source: RowStep
) -> RowStep:
    """The step of a video table: every prompt of a SELECT over the source's table, filmed with so many seeds."""
    return RowStep(
        table=videos,
        inputs=lambda platform: _with_video_model(
            filmed(prompts, seeds(platform), platform.profile.seed), video_model_id(platform, target)
        ),
        recipe=lambda platform: film_recipe(platform, target),
        faults=lambda platform: untrained_video_model(platform, target),
        work=lambda platform, rows: film(platform, target, rows),
        stage="videos",
        backends=lambda profile: (profile.targets[target].video_generator,),
        batch_size=lambda platform: platform.profile.refresh.video_batch,
        lost=lambda platform: lost_videos(platform, videos, rewards),
        reads=(source,),
    )


def reward_step(target: str, rewards: Table, videos: RowStep) -> RowStep:
    """The step of a table of rewards: every video of another step, scored for its query."""
    return RowStep(
        table=rewards,
        inputs=lambda _: rewarded(videos.table.qualified, QUERIES.qualified),
        recipe=lambda platform: reward_recipe(platform, target),
        work=lambda platform, rows: reward(platform, target, rows),
        stage="rewards",
        backends=lambda profile: (profile.targets[target].video_reward,),
        batch_size=lambda platform: platform.profile.refresh.video_batch,
        reads=(videos,),
    )


def filmed(prompts: str, seeds: int, profile_seed: int) -> str:
    """The inputs of a video table: every prompt of a SELECT, with each of its query's seeds.

    All prompts of a query share their seeds, so that they start from the same noise and differ by their words.
    """
    return (
        "SELECT content_id([prompt_id, prompt, seed::VARCHAR]) AS input_id, * FROM ("
        "SELECT p.*, ('0x' || left(content_id([query_id, s::VARCHAR, "
        f"'{int(profile_seed)}']), 12))::BIGINT AS seed FROM ({prompts}) AS p, range({int(seeds)}) AS r(s))"
    )


def _with_video_model(inputs: str, checkpoint_id: str | None) -> str:
    """The same inputs, for a worker that cannot ask the lake with the checkpoint they are filmed by."""
    if checkpoint_id is None:
        return inputs
    assert checkpoint_id.replace("-", "").isalnum()
    return f"SELECT *, '{checkpoint_id}' AS video_model FROM ({inputs})"


def film(platform: Platform, target: str, rows: Sequence[Row]) -> list[Made]:
    """Render each row's prompt with its seed, and store the clip."""
    generator = platform.video_generator(target, rows[0].get("video_model"))
    started = time.monotonic()
    clips = generator.generate([row["prompt"] for row in rows], [row["seed"] for row in rows])
    seconds = (time.monotonic() - started) / len(rows)
    return joined(rows, clips, lambda row, clip: _video_row(row, platform.videos.put(clip, generator.fps), seconds))


def _video_row(row: Row, file: VideoFile, seconds: float) -> Row:
    return {
        "video_id": content_id(row["input_id"], file.sha256),
        "prompt_id": row["prompt_id"],
        "query_id": row["query_id"],
        "prompt": row["prompt"],
        "seed": row["seed"],
        "seconds_to_render": seconds,
        **vars(file),
        **method_of(row),
    }


def film_recipe(platform: Platform, target: str) -> dict[str, JSON]:
    """What decides a video beside prompt and seed."""
    made_by: dict[str, JSON] = {"video_generator": dict(platform.video_generators[target].identity())}
    checkpoint_id = video_model_id(platform, target)
    return made_by if checkpoint_id is None else {**made_by, "video_model": checkpoint_id}


def lost_videos(platform: Platform, videos: Table, rewards: Table) -> Collection[str]:
    """Input ids of rows whose file is gone or damaged: they are rendered again.

    A video that has its reward was read and found whole, so a look at its size is enough; the others are read.
    """
    rows = platform.lake.query(
        "SELECT v.input_id, v.uri, v.bytes, CASE WHEN r.video_id IS NULL THEN v.sha256 END AS sha256 "
        f"FROM {videos.qualified} AS v LEFT JOIN {rewards.qualified} AS r USING (video_id)"
    ).to_pylist()
    return platform.videos.lost((row["input_id"], row["uri"], row["bytes"], row["sha256"]) for row in rows)


def rewarded(videos_table: str, queries_table: str) -> str:
    """The inputs of a table of rewards: every video with the user's query, which is all the reward gets to see."""
    return (
        f"SELECT content_id([v.video_id, v.sha256, q.query]) AS input_id, v.*, q.query FROM {videos_table} AS v "
        f"JOIN {queries_table} AS q USING (query_id)"
    )


def reward(platform: Platform, target: str, rows: Sequence[Row]) -> list[Made]:
    """The reward model's answers on each row's video, its score, and the share of each dimension."""
    model = platform.video_rewards[target]
    clips = [platform.videos.get(row["uri"], row["sha256"]) for row in rows]
    answers = model.answer([row["query"] for row in rows], clips)
    return joined(rows, answers, lambda row, given: _reward_row(row, given, model.checklist))


def _reward_row(row: Row, answers: Sequence[Answer], checklist: Checklist) -> Row:
    values = [[getattr(answer, checklist.counts) for answer in answers]]
    return {
        "video_id": row["video_id"],
        "prompt_id": row["prompt_id"],
        "query_id": row["query_id"],
        "seed": row["seed"],
        "answers": [vars(answer) for answer in answers],
        "score": float(checklist.score(values)[0]),
        "dimensions": [
            {"dimension": name, "score": float(share[0])} for name, share in checklist.by_dimension(values).items()
        ],
        **method_of(row),
    }


def reward_recipe(platform: Platform, target: str) -> dict[str, JSON]:
    """What decides a reward beside query and video."""
    model = platform.video_rewards[target]
    return {"video_reward": dict(model.identity()), "checklist": content_id(model.checklist.to_json())}


def sheet(platform: Platform, videos: str, queries: str, label: str, order: str) -> bytes:
    """A contact sheet of a few queries, each with its prompts at one seed; `label` and `order` are SQL."""
    rows = platform.lake.query(
        f"SELECT query, {label} AS label, uri, sha256 FROM {videos} JOIN {queries} USING (query_id) "
        f"WHERE query_id IN (SELECT DISTINCT query_id FROM {videos} ORDER BY query_id LIMIT {SHEET_ROWS}) "
        f"QUALIFY row_number() OVER (PARTITION BY prompt_id ORDER BY seed) = 1 ORDER BY query_id, {order}, prompt_id"
    ).to_pylist()
    by_query: dict[str, list[LabelledClip]] = {}
    for row in rows:
        frames = platform.videos.get(row["uri"], row["sha256"])
        by_query.setdefault(row["query"], []).append(LabelledClip(label=row["label"], frames=frames))
    return contact_sheet([ContactRow(caption=query, clips=clips[:4]) for query, clips in by_query.items()])


def video_figures(
    platform: Platform, videos: str, queries: str, *, label: str = "prompt", order: str = "prompt_id"
) -> dict[str, Any]:
    """What people look at of a video table."""
    seconds = platform.lake.query(f"SELECT round(avg(seconds_to_render), 3) AS seconds FROM {videos}")
    return {
        "contact_sheet": sheet(platform, videos, queries, label, order),
        "seconds_a_video": seconds["seconds"][0].as_py() or 0.0,
    }
