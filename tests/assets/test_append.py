"""Rows of several recipes side by side, and what is built upon them."""

import pytest

from tests.assets.conftest import World, metadata_of
from tests.assets.running import materialize_with

pytestmark = pytest.mark.slow

APPEND = {"mode": "APPEND"}
ACCEPT = {"accept_stale_inputs": True}


def learned(world: World) -> dict[str, str]:
    return {row["query_id"]: row["prompt_id"] for row in world.rows('SELECT * FROM "lake"."main"."sft_dataset"')}


def test_examples_come_from_the_drafts_that_the_profile_would_make(world: World) -> None:
    first = learned(world)
    drafts = world.ids("main.drafts", "prompt_id")
    world.platform.language_model.name = "few-shot 2"
    materialize_with(world, APPEND, "drafts", "draft_critiques")
    world.materialize("sft_dataset")
    both = world.ids("main.drafts", "prompt_id")
    alike = 2 * len(drafts) - len(both)  # the same text is the same row, whoever wrote it
    assert drafts < both and alike < len(drafts) / 2, "the earlier ones are kept"
    assert world.ids("main.draft_critiques", "prompt_id") == both, "and so is what was paid for them"
    second = learned(world)
    newest = "SELECT prompt_id AS id FROM drafts QUALIFY recipe = first(recipe) OVER (ORDER BY made_at DESC)"
    assert set(second.values()) <= {row["id"] for row in world.rows(newest)} and second
    # Back to the first recipe: its rows are there, and are used again although others are newer.
    world.platform.language_model.name = "few-shot"
    result = materialize_with(world, APPEND, "drafts", "draft_critiques")
    assert metadata_of(result, "drafts")["new"] == alike and metadata_of(result, "draft_critiques")["new"] == 0
    world.materialize("sft_dataset")
    assert learned(world) == first


def test_pairs_and_evaluation_count_the_videos_of_the_present_generator_only(world: World) -> None:
    pairs = '"lake"."shapes"."preference_pairs"'
    world.platform.camera.version = 2
    materialize_with(
        world, APPEND, "shapes/videos", "shapes/video_rewards", "shapes/eval_videos", "shapes/eval_rewards"
    )
    world.materialize("shapes/preference_pairs")
    materialize_with(world, ACCEPT, "shapes/evaluation")  # of the policy that was trained before
    appended = world.rows(f"SELECT * EXCLUDE (run_id, made_at) FROM {pairs} ORDER BY pair_id")
    value = 'SELECT * EXCLUDE (run_id, made_at) FROM "lake"."shapes"."evaluation" ORDER BY evaluation_id'
    evaluated = world.rows(value)
    assert len({row["recipe"] for row in world.rows('SELECT recipe FROM "lake"."shapes"."videos"')}) == 2
    # A plain refresh takes the earlier videos away, and nothing else changes.
    world.materialize("shapes/videos", "shapes/video_rewards", "shapes/eval_videos", "shapes/eval_rewards")
    result = world.materialize("shapes/preference_pairs")
    materialize_with(world, ACCEPT, "shapes/evaluation")
    assert len({row["recipe"] for row in world.rows('SELECT recipe FROM "lake"."shapes"."videos"')}) == 1
    assert world.rows(f"SELECT * EXCLUDE (run_id, made_at) FROM {pairs} ORDER BY pair_id") == appended
    assert world.rows(value) == evaluated
    assert metadata_of(result, "shapes/preference_pairs")["new"] == 0
