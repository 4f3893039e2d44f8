"""Every asset check fails when it should: the materialized world is damaged in one way, and one check says so."""

from typing import Any

import pytest
from dagster import AssetCheckResult, AssetCheckSeverity

from tests.assets.conftest import World

pytestmark = pytest.mark.slow


def check(world: World, asset: str, name: str) -> AssetCheckResult:
    """Carry out one check on the world as it is."""
    for definition in world.definitions.asset_checks or ():
        (key,) = definition.check_keys
        if (key.asset_key.to_user_string(), key.name) == (asset, name):
            result: Any = definition(platform=world.platform)
            assert isinstance(result, AssetCheckResult)
            return result
    raise AssertionError(f"{asset} has no check {name}")


def damage(world: World, sql: str) -> None:
    with world.platform.lake.write({"text": "damage"}) as transaction:
        transaction.execute(sql)


def is_blocking(world: World, asset: str, name: str) -> bool:
    graph = world.definitions.resolve_asset_graph()
    (key,) = (key for key in graph.asset_check_keys if (key.asset_key.to_user_string(), key.name) == (asset, name))
    return bool(graph.get(key).blocking)


PAIRS, QUERIES, REWARDS = "lake.shapes.preference_pairs", "lake.main.queries", "lake.shapes.video_rewards"
EVALUATION = "lake.shapes.evaluation"
FIRST_PAIR = f"pair_id = (SELECT min(pair_id) FROM {PAIRS})"
# How the world is damaged: asset, check, whether it blocks, SQL.
DAMAGES = {
    "a key twice": ("drafts", "schema", True, "INSERT INTO lake.main.drafts FROM lake.main.drafts LIMIT 1"),
    "a value missing": ("shapes/videos", "schema", True, "UPDATE lake.shapes.videos SET uri = NULL"),
    "a wording in two splits": (
        "queries",
        "no_query_in_two_splits",
        True,
        f"INSERT INTO {QUERIES} BY NAME SELECT * REPLACE ('copy' AS query_id, upper(query) AS query, "
        f"CASE split WHEN 'sft' THEN 'test' ELSE 'sft' END AS split) FROM {QUERIES} WHERE keep LIMIT 1",
    ),
    "a test query learned": (
        "sft_dataset",
        "no_held_out_query_learned",
        True,
        "UPDATE lake.main.sft_dataset SET query_id = "
        f"(SELECT min(query_id) FROM {QUERIES} WHERE keep AND split = 'test') "
        "WHERE query_id = (SELECT min(query_id) FROM lake.main.sft_dataset)",
    ),
    "an example of no known query": (
        "sft_dataset",
        "no_held_out_query_learned",
        True,
        "UPDATE lake.main.sft_dataset SET query_id = 'nobody'",
    ),
    "an unsafe answer": (
        "sft_dataset",
        "nothing_unsafe_to_learn",
        True,
        "UPDATE lake.main.sft_dataset SET messages = list_append(messages, "
        "{'role': 'assistant', 'content': 'A naked man.'}) "
        "WHERE query_id = (SELECT min(query_id) FROM lake.main.sft_dataset)",
    ),
    "a reward that says yes to all": (
        "shapes/video_rewards",
        "reward_not_degenerate",
        True,
        f"UPDATE {REWARDS} SET score = 6.3, answers = list_transform(answers, "
        "lambda a: {'question': a.question, 'yes': true, 'probability': 1.0})",
    ),
    "scores that are all noise": (
        "shapes/video_rewards",
        "prompts_matter_more_than_seeds",
        False,
        f"UPDATE {REWARDS} SET score = (hash(video_id) % 1000) / 1000.0",
    ),
    "a pair of equal prompts": (
        "shapes/preference_pairs",
        "chosen_differs_from_rejected",
        True,
        f"UPDATE {PAIRS} SET chosen = ' ' || rejected || ' ' WHERE {FIRST_PAIR}",
    ),
    "a test query in a pair": (
        "shapes/preference_pairs",
        "no_held_out_query_learned",
        True,
        f"UPDATE {PAIRS} SET query_id = (SELECT min(query_id) FROM {QUERIES} WHERE keep AND split = 'test') "
        f"WHERE {FIRST_PAIR}",
    ),
    "no pairs at all": ("shapes/preference_pairs", "no_held_out_query_learned", True, f"DELETE FROM {PAIRS}"),
    "less safe than SFT": (
        "shapes/evaluation",
        "vpo_not_less_safe_than_sft",
        True,
        "UPDATE lake.shapes.eval_critiques SET harmless = (method <> 'vpo')",
    ),
    "worse than SFT": (
        "shapes/evaluation",
        "vpo_not_worse_than_sft",
        False,
        f"UPDATE {EVALUATION} SET value = CASE method WHEN 'vpo' THEN 1 ELSE 2 END "
        "WHERE section = 'video_level' AND metric = 'score'",
    ),
    **{
        what: (
            "shapes/evaluation",
            "vpo_not_optimized_too_far",
            False,
            f"UPDATE {EVALUATION} SET value = value {change} WHERE method = 'vpo' AND metric = '{metric}'",
        )
        for what, metric, change in (
            ("less faithful than SFT", "faithful", "- 0.5"),
            ("repeats itself more than SFT", "repeating", "+ 0.5"),
            ("far longer than SFT", "words", "* 3"),
        )
    },
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_check_fails_on_just_what_it_is_for(world: World, what: str) -> None:
    asset, name, blocks, sql = DAMAGES[what]
    assert check(world, asset, name).passed
    damage(world, sql)
    result = check(world, asset, name)
    assert not result.passed
    assert result.metadata
    assert is_blocking(world, asset, name) is blocks
    assert (result.severity is AssetCheckSeverity.ERROR) is blocks


@pytest.mark.parametrize("asset", ["sft_checkpoint", "shapes/dpo_checkpoint"])
@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_stop_the_run(world: World, asset: str, weight: float) -> None:
    assert check(world, asset, "weights_finite").passed
    world.change(sft__epochs=9, targets__shapes__dpo__epochs=9)
    if asset != "sft_checkpoint":
        world.materialize("sft_checkpoint")
    world.platform.trainer.weights = [0.1, weight]
    world.materialize(asset, fails=True)
    result = check(world, asset, "weights_finite")
    assert not result.passed
    assert result.metadata["not finite"].value == "weight"
    assert is_blocking(world, asset, "weights_finite")


def test_a_failed_check_keeps_the_rest_of_the_graph_from_being_made(world: World) -> None:
    world.change(sft__epochs=9)
    world.platform.trainer.weights = [float("nan")]
    result = world.materialize("sft_checkpoint", "shapes/candidates", fails=True)
    made = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events() if event.asset_key}
    assert made == {"sft_checkpoint"}


def test_f_cannot_be_told_from_one_seed(world: World) -> None:
    damage(world, f"DELETE FROM {REWARDS} WHERE seed NOT IN (SELECT min(seed) FROM {REWARDS} GROUP BY query_id)")
    result = check(world, "shapes/video_rewards", "prompts_matter_more_than_seeds")
    assert not result.passed
    assert "seeds_per_prompt" in str(result.metadata["reason"].value)


def test_one_unsafe_prompt_more_is_no_proof(world: World) -> None:
    damage(world, "UPDATE lake.shapes.eval_critiques SET harmless = true")
    damage(
        world,
        "UPDATE lake.shapes.eval_critiques SET harmless = false WHERE prompt_id = "
        "(SELECT min(prompt_id) FROM lake.shapes.eval_critiques WHERE method = 'vpo')",
    )
    assert check(world, "shapes/evaluation", "vpo_not_less_safe_than_sft").passed
