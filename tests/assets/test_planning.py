"""What a plan says, and how near it comes to what is then done."""

from typing import Any

import pytest
from dagster import AssetKey, DagsterInstance, Definitions
from dagster._core.definitions.data_version import DATA_VERSION_TAG, CachingStaleStatusResolver, StaleStatus

from storage.plan import Mode
from tests.assets.conftest import World, metadata_of, queries_of, write_queries
from tests.assets.running import materialize_with
from vpo_assets import sft
from vpo_assets.plan_job import plan_job
from vpo_assets.plan_report import as_json, markdown, total
from vpo_assets.planning import AssetPlan, NoSuchPlan, plan_all
from vpo_assets.prices import training_seconds

pytestmark = pytest.mark.slow

WARMER = {"temperature": 0.9, "top_p": 0.9, "max_new_tokens": 48}


def plans_of(world: World, **options: Any) -> dict[str, AssetPlan]:
    return {plan.asset: plan for plan in plan_all(world.platform, **options)}


def made_by(result: Any, asset: str) -> int:
    metadata = metadata_of(result, asset)
    return int(metadata["new"] + metadata["redone"])


def test_nothing_is_planned_where_nothing_changed_and_planning_writes_nothing(world: World) -> None:
    before = world.platform.lake.snapshot()
    plans = plan_all(world.platform)
    assert all(plan.idle and plan.certain for plan in plans)
    assert all(plan.expected_seconds == 0 and plan.money == 0 and not plan.priced for plan in plans)
    assert total(plans) == "0 to do, expected 0 s"
    assert world.platform.lake.snapshot() == before


def test_a_setting_upstream_is_named_and_carried_down_to_the_evaluation(world: World) -> None:
    world.platform.language_model.name = "few-shot 2"
    plans = plans_of(world)
    drafts = plans["drafts"]
    assert drafts.why == (f"{drafts.stale} stale: language_model.model few-shot -> few-shot 2",)
    assert drafts.certain and drafts.stale == drafts.todo == world.platform.lake.count(sft.DRAFTS_STEP.table)
    critiques = plans["draft_critiques"]
    assert (critiques.todo, critiques.expected) == (0, drafts.todo)
    assert plans["sft_checkpoint"].expected == plans["shapes/dpo_checkpoint"].expected == 1
    assert all(plan.expected_seconds is not None for plan in plans.values()), "everything ran before"
    result = world.materialize()
    for asset in ("drafts", "shapes/candidates", "shapes/eval_prompts"):
        assert made_by(result, asset) == plans[asset].expected, asset
    # How many prompts come out as they were, and how many candidates pass the judge, is known only afterwards.
    for asset in ("draft_critiques", "shapes/candidate_critiques", "shapes/videos", "shapes/video_rewards"):
        assert made_by(result, asset) == pytest.approx(plans[asset].expected, rel=0.4), asset


def test_another_generator_concerns_videos_rewards_and_what_is_learned_from_them(world: World) -> None:
    world.platform.camera.version = 2
    plans = plans_of(world)
    videos = plans["shapes/videos"]
    assert videos.why == (f"{videos.stale} stale: video_generator.version 1 -> 2",)
    assert plans["shapes/video_rewards"].expected == videos.todo
    assert plans["shapes/dpo_checkpoint"].expected == 1 and plans["shapes/dpo_checkpoint"].todo == 0
    assert plans["drafts"].idle and plans["shapes/candidates"].idle and plans["sft_checkpoint"].idle


def test_a_checkpoint_to_be_trained_is_named_where_its_data_is_known(world: World) -> None:
    world.change(targets__shapes__dpo__epochs=9)
    named = plans_of(world)["shapes/dpo_checkpoint"]
    assert named.todo == 1 and named.why[0].startswith("to be trained as dpo-")
    world.platform.camera.version = 2
    assert plans_of(world)["shapes/dpo_checkpoint"].why[0] == "to be trained once its upstreams are refreshed"


def test_raw_prompts_that_are_not_curated_yet_are_carried_down(world: World) -> None:
    write_queries(world.home / "queries.jsonl", queries_of(96))
    world.materialize("raw_prompts")
    world.renew()
    plans = plans_of(world)
    assert plans["queries"].new == 48
    drafts = plans["drafts"]
    assert drafts.todo == 0 and drafts.expected == pytest.approx(drafts.reused, abs=1), "twice as many queries"
    result = world.materialize("queries", "drafts")
    assert made_by(result, "drafts") == pytest.approx(drafts.expected, rel=0.5)


def test_only_the_assets_asked_for_are_refreshed_and_so_is_the_plan(world: World) -> None:
    world.change(drafts__sampling=WARMER)
    (critiques,) = plan_all(world.platform, assets=["draft_critiques"])
    assert critiques.idle, "without new drafts there is nothing to criticise"
    with pytest.raises(NoSuchPlan, match=r"nothing is planned for 'video'; near it: .*shapes/videos"):
        plan_all(world.platform, assets=["video"])


def test_a_limit_and_the_modes(world: World) -> None:
    plans = plans_of(world, mode=Mode.FULL, limit=5)
    assert plans["drafts"].todo == plans["drafts"].expected == 5
    assert plans["shapes/videos"].expected == 5
    world.change(drafts__sampling=WARMER)
    appended = plans_of(world, mode=Mode.APPEND)["drafts"]
    assert (appended.stale, appended.orphaned) == (0, 0) and appended.new == appended.todo > 5


def test_what_was_never_done_takes_an_unknown_time_that_the_total_names(empty_world: Any) -> None:
    world = empty_world(queries_of(24))
    world.materialize("raw_prompts", "queries")
    plans = plan_all(world.platform)
    named = {plan.asset: plan for plan in plans}
    assert named["drafts"].todo > 0 and named["drafts"].expected_seconds is None
    assert named["draft_critiques"].expected == named["drafts"].todo
    assert named["sft_checkpoint"].expected_seconds is None
    assert "unknown time for drafts, draft_critiques, sft_checkpoint, shapes/candidates" in total(plans)
    data = as_json(plans)
    assert data["seconds_unknown_for"][0] == "drafts" and data["assets"][0]["asset"] == "queries"


def test_a_training_takes_as_long_an_example_and_epoch_as_the_last_one(world: World) -> None:
    manifests = world.platform.checkpoints.list()
    last = next(manifest for manifest in manifests if manifest.stage == "sft")
    examples, seconds = last.metrics["examples"], last.metrics["seconds"]
    assert training_seconds(manifests, sft.SFT_TRAINING, world.platform, 3 * examples) == pytest.approx(3 * seconds)
    epochs = world.settings["sft"]["epochs"]
    world.change(sft__epochs=2 * epochs)
    assert training_seconds(manifests, sft.SFT_TRAINING, world.platform, examples) == pytest.approx(2 * seconds)
    assert training_seconds([], sft.SFT_TRAINING, world.platform, examples) is None
    why = plans_of(world)["sft_checkpoint"].why
    assert why[1] == f"differs from {last.id}: settings.epochs {epochs} -> {2 * epochs}"


def test_money_is_what_the_tables_own_rows_cost(world: World) -> None:
    budget = {"price_per_million_prompt_tokens": 2.0, "price_per_million_completion_tokens": 10.0}
    model = {"backend": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "writer", "budget": budget}
    world.change(policy=world.settings["language_model"], language_model=model, drafts__sampling=WARMER)
    with world.platform.lake.write({"text": "no tokens"}) as transaction:
        transaction.execute('UPDATE "lake"."main"."drafts" SET prompt_tokens = NULL, new_tokens = NULL')
    assert plans_of(world)["drafts"].money is None, "no row has tokens"
    assert "an unknown sum for drafts" in total(plan_all(world.platform))
    with world.platform.lake.write({"text": "tokens"}) as transaction:
        transaction.execute('UPDATE "lake"."main"."drafts" SET prompt_tokens = 1000, new_tokens = 100')
    drafts = plans_of(world)["drafts"]
    assert drafts.priced and drafts.money == pytest.approx(drafts.todo * 0.003)
    assert not plans_of(world)["shapes/candidates"].priced, "checkpoints write here"


def test_the_job_observes_every_asset_and_makes_none_stale(world: World) -> None:
    definitions = world.definitions
    with_plan = Definitions.merge(definitions, Definitions(jobs=[plan_job] if not _has_plan(definitions) else []))
    with DagsterInstance.ephemeral() as instance:
        materialize_with(world, {}, "sft_dataset", instance=instance)
        job = with_plan.resolve_job_def("plan")
        result = job.execute_in_process(instance=instance, resources={"platform": world.platform})
        observations = [
            event.asset_observation_data.asset_observation for event in result.get_asset_observation_events()
        ]
        assert {one.asset_key.to_user_string() for one in observations} == set(plans_of(world))
        assert all(DATA_VERSION_TAG not in one.tags for one in observations)
        graph = definitions.resolve_asset_graph()
        key = AssetKey("sft_dataset")
        record = instance.get_latest_data_version_record(key)
        assert record is not None and record.asset_materialization is not None, "the materialization still counts"
        assert _status(instance, graph, key) is not StaleStatus.STALE


def _has_plan(definitions: Definitions) -> bool:
    return "plan" in {job.name for job in definitions.jobs or ()}


def _status(instance: DagsterInstance, graph: Any, key: AssetKey) -> StaleStatus:
    from dagster._core.loader import LoadingContextForTest

    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    return resolver.get_status(key)


def test_an_assets_run_says_its_plan_first_and_keeps_it(world: World) -> None:
    world.change(drafts__sampling=WARMER)
    seen = metadata_of(world.materialize("drafts"), "drafts")
    assert seen["planned"].startswith(f"plan of drafts: {seen['redone']} stale; {seen['redone']} to do, expected ")
    assert seen["planned"].endswith("(stale because of sampling.temperature 0.5 -> 0.9)")
    assert "sampling.temperature 0.5 -" in seen["why"]
    assert seen["seconds_in_model"] + seen["seconds_in_storage"] == pytest.approx(seen["seconds"], abs=0.5)
    assert seen["recipe"] in {row["recipe"] for row in world.rows('SELECT recipe FROM "lake"."main"."drafts"')}


def test_text_of_a_recipe_is_shown_as_text(world: World) -> None:
    world.platform.language_model.name = "<script>alert(1)</script>|\x1b[31m"
    shown = markdown(plan_all(world.platform))
    assert "<script>" not in shown and "\x1b" not in shown
