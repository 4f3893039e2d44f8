"""Assets refuse what was not made by what the profile names, say what to refresh, and let everything else pass."""

import shutil
from typing import Any

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetCheckSeverity,
    AssetKey,
    AssetMaterialization,
    DagsterInstance,
)

from storage.tables import DRAFTS
from tests.assets.conftest import World, errors_of, metadata_of
from tests.assets.running import materialize_with
from vpo_assets import provenance, sft
from vpo_assets.target import build_branch

pytestmark = pytest.mark.slow

ACCEPT = {"accept_stale_inputs": True}


def refused(world: World, *assets: str, options: dict[str, Any] | None = None) -> str:
    return errors_of(materialize_with(world, options or {}, *assets, fails=True))


def test_rewards_of_videos_that_the_profile_would_film_otherwise(world: World) -> None:
    world.platform.camera.version = 2
    said = refused(world, "shapes/video_rewards")
    assert "shapes/videos has 106 of 106 rows" in said
    assert "(video_generator.version 1 -> 2): refresh shapes/videos first" in said
    assert "shapes/videos" in refused(world, "shapes/preference_pairs")
    assert metadata_of(materialize_with(world, ACCEPT, "shapes/video_rewards"), "shapes/video_rewards")["new"] == 0
    world.materialize("shapes/videos")
    assert "shapes/video_rewards" not in refused(world, "shapes/evaluation"), "its own videos are stale, not these"
    world.materialize("shapes/video_rewards")
    world.materialize("shapes/preference_pairs")


def test_answers_to_another_checklist_are_not_compared(world: World) -> None:
    """Rewards are recorded with their checklist; one that is no longer the profile's must be asked again."""
    with world.platform.lake.write({"text": "an earlier checklist"}) as transaction:
        parts = world.rows(
            'SELECT parts FROM "lake"."main"."recipes" '
            'WHERE recipe IN (SELECT recipe FROM "lake"."shapes"."video_rewards")'
        )[0]["parts"]
        earlier = parts.replace('"checklist":"', '"checklist":"0')
        transaction.execute('INSERT INTO "lake"."main"."recipes" VALUES (?, ?, now())', ["earlier", earlier])
        transaction.execute('UPDATE "lake"."shapes"."video_rewards" SET recipe = ?', ["earlier"])
    said = refused(world, "shapes/preference_pairs")
    assert "shapes/video_rewards has 106 of 106 rows" in said and "(checklist 0" in said
    world.materialize("shapes/video_rewards", "shapes/preference_pairs")


def test_everything_in_order_passes_after_any_change_also_with_a_limit(world: World) -> None:
    world.platform.camera.version = 2
    world.platform.language_model.name = "few-shot 2"
    assets = ("drafts", "draft_critiques", "shapes/videos", "shapes/video_rewards")
    result = materialize_with(world, {"limit": 5}, *assets)
    assert metadata_of(result, "drafts")["redone"] == 5
    # What the limit left is stale, and another run says so.
    assert "refresh shapes/videos first" in refused(world, "shapes/preference_pairs")
    world.materialize()


def test_a_row_that_fails_blocks_nothing(world: World) -> None:
    query = world.rows("SELECT query FROM queries WHERE keep AND split = 'sft' LIMIT 1")[0]["query"]
    world.platform.language_model.name = "few-shot 2"
    world.platform.language_model.broken_for = query
    result = world.materialize("drafts")
    assert metadata_of(result, "drafts")["failed"] == 1
    materialize_with(world, {}, "draft_critiques")
    world.materialize("sft_dataset")


def test_failed_rows_are_named_in_the_log(world: World) -> None:
    from vpo_assets.metadata import failed_rows

    query = world.rows("SELECT query FROM queries WHERE keep AND split = 'sft' LIMIT 1")[0]["query"]
    world.platform.language_model.name = "few-shot 2"
    world.platform.language_model.broken_for = query
    recipe = metadata_of(world.materialize("drafts"), "drafts")["recipe"]
    (line,) = failed_rows(world.platform, DRAFTS, recipe)
    failed = world.rows('SELECT input_id FROM "lake"."main"."failures"')[0]["input_id"]
    assert line == f"drafts: input {failed} failed (attempt 1): RuntimeError: cannot write about {query}"


def test_a_pinned_policy_of_another_base_model(world: World) -> None:
    policy = sft.SFT_TRAINING.trained(world.platform)
    world.change(targets__shapes__candidates__policy=policy)
    world.platform.__dict__["base_model_name"] = "fake-base 2"
    said = refused(world, "shapes/candidates")
    assert f"checkpoint {policy} was trained from fake-base 1, the profile trains fake-base 2" in said
    (dpo,) = [manifest.id for manifest in world.platform.checkpoints.list() if manifest.stage == "dpo"]
    assert provenance.root_base(world.platform, dpo) == "fake-base 1", "found through the policy that it began with"
    world.platform.__dict__["base_model_name"] = "fake-base 1"
    materialize_with(world, {}, "shapes/candidates")


def test_an_evaluation_of_prompts_that_other_checkpoints_wrote(world: World) -> None:
    world.change(targets__shapes__dpo__beta=0.3)
    said = refused(world, "shapes/evaluation")
    assert "shapes/eval_prompts has 8 vpo prompts written by dpo-" in said
    assert "refresh shapes/eval_prompts first" in said


def test_a_lake_of_another_version(world: World) -> None:
    step, warned = sft.DRAFT_CRITIQUES_STEP, []
    lake = world.platform.lake
    assert provenance.faults_of(world.platform, step, (), warned.append) == [] and not warned
    with lake.write({"text": "a later version"}) as transaction:
        transaction.execute(f"ALTER TABLE {DRAFTS.qualified} ADD COLUMN mood VARCHAR")
    assert provenance.faults_of(world.platform, step, (), warned.append) == []
    assert warned == ["table drafts has columns that this version does not know: mood"]
    with lake.write({"text": "an earlier version"}) as transaction:
        transaction.execute(f"ALTER TABLE {DRAFTS.qualified} DROP COLUMN cut")
    assert provenance.faults_of(world.platform, step, (), warned.append) == [
        "table drafts lacks the columns cut: its lake was made by another version"
    ]
    with lake.write({"text": "another type"}) as transaction:
        transaction.execute(f"ALTER TABLE {DRAFTS.qualified} ADD COLUMN cut VARCHAR")
    (fault,) = provenance.faults_of(world.platform, step, (), warned.append)
    assert fault.startswith("table drafts has cut as VARCHAR, this version needs BOOLEAN")


def test_every_table_of_the_graph_has_the_schema_that_is_asked_for(world: World) -> None:
    branch = build_branch("shapes", world.profile)
    tables = [step.table for step in (*sft.STEPS, *sft.SET_STEPS, *branch.steps, *branch.set_steps)]
    assert list(provenance.schema_faults(world.platform, tables, lambda line: pytest.fail(line))) == []


def test_a_blocking_check_that_failed_in_another_run(world: World) -> None:
    graph, asset = world.definitions.resolve_asset_graph(), AssetKey("sft_checkpoint")
    failed = AssetCheckEvaluation(
        asset_key=AssetKey("sft_dataset"),
        check_name="nothing_unsafe_to_learn",
        passed=False,
        severity=AssetCheckSeverity.ERROR,
    )
    assert graph.get(AssetCheckKey(AssetKey("sft_dataset"), "nothing_unsafe_to_learn")).blocking
    with DagsterInstance.ephemeral() as instance:
        assert list(provenance.failed_checks(instance, graph, asset)) == []
        instance.report_runless_asset_event(AssetMaterialization("sft_dataset"))
        instance.report_runless_asset_event(failed)
        (fault,) = provenance.failed_checks(instance, graph, asset)
        assert fault.startswith("sft_dataset failed its check nothing_unsafe_to_learn")
        assert list(provenance.failed_checks(instance, graph, AssetKey("drafts"))) == []


def test_work_stops_before_the_disk_is_full_and_keeps_what_is_done(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.platform.camera.version = 2
    usage = shutil.disk_usage(world.home)
    world.change(refresh__video_batch=16)
    world.platform.camera.version = 2

    def left(path: object) -> Any:
        enough = world.platform.counts["videos"] < 32
        return usage._replace(free=(10 if enough else 0.25) * 2**30)

    monkeypatch.setattr(shutil, "disk_usage", left)
    said = refused(world, "shapes/videos")
    assert "shapes/videos: stopped before writing, for want of room" in said
    assert "has 0.25 GB free, and refresh.min_free_gb asks for 1 GB" in said
    assert world.platform.counts["videos"] == 32
    done = world.rows(
        'SELECT recipe, count(*) AS n FROM "lake"."shapes"."videos" GROUP BY recipe ORDER BY max(made_at) DESC'
    )
    assert [row["n"] for row in done] == [32, 74]
    monkeypatch.undo()
    assert metadata_of(world.materialize("shapes/videos"), "shapes/videos")["redone"] == 74
