"""The whole graph, once: what it looks like, what comes out, and that nothing is done twice."""

import pytest
from dagster import AssetKey, ExecuteInProcessResult

from tests.assets.conftest import World, data_versions, errors_of, metadata_of, queries_of, write_queries

FirstRun = tuple[World, ExecuteInProcessResult]
ROW_ASSETS = (
    "drafts",
    "draft_critiques",
    "shapes/candidates",
    "shapes/candidate_critiques",
    "shapes/videos",
    "shapes/video_rewards",
    "shapes/eval_prompts",
    "shapes/eval_critiques",
    "shapes/eval_safety",
    "shapes/eval_videos",
    "shapes/eval_rewards",
)
SET_ASSETS = ("queries", "sft_dataset", "shapes/preference_pairs", "shapes/evaluation")
CHECKPOINTS = ("sft_checkpoint", "shapes/dpo_checkpoint")
ALL = {"raw_prompts", *ROW_ASSETS, *SET_ASSETS, *CHECKPOINTS}


def test_trunk_and_branch_are_linked_as_the_design_says(first_run: FirstRun) -> None:
    graph = first_run[0].definitions.resolve_asset_graph()
    on_request = {"shapes/published_model", "shapes/published_dataset"}
    assert {key.to_user_string() for key in graph.materializable_asset_keys} == ALL | on_request

    def parents(asset: str) -> set[str]:
        return {key.to_user_string() for key in graph.get(AssetKey.from_user_string(asset)).parent_keys}

    assert parents("queries") == {"raw_prompts"}
    assert parents("sft_checkpoint") == {"sft_dataset"}
    assert parents("shapes/candidates") == {"queries", "sft_checkpoint"}
    assert parents("shapes/videos") == {"shapes/candidate_critiques"}
    assert parents("shapes/dpo_checkpoint") == {"shapes/preference_pairs", "sft_checkpoint"}
    assert parents("shapes/eval_prompts") == {"queries", "sft_checkpoint", "shapes/dpo_checkpoint"}


def test_every_asset_is_described(first_run: FirstRun) -> None:
    graph = first_run[0].definitions.resolve_asset_graph()
    for key in graph.materializable_asset_keys:
        node = graph.get(key)
        assert node.description and len(node.description) > 30, key
        assert node.group_name == ("shapes" if len(key.path) > 1 else "trunk"), key
        assert node.owners, key
        assert node.kinds, key
        assert node.code_version, key


def test_a_first_run_makes_everything_and_every_check_passes(first_run: FirstRun) -> None:
    world, result = first_run
    assert set(data_versions(result)) == ALL
    checks = {(c.asset_key.to_user_string(), c.check_name): c for c in result.get_asset_check_evaluations()}
    assert set(checks) == {
        (key.asset_key.to_user_string(), key.name) for key in world.definitions.resolve_asset_graph().asset_check_keys
    }
    assert {name: check.metadata for name, check in checks.items() if not check.passed} == {}
    assert {name for name, check in checks if check == "schema"} == ALL - set(CHECKPOINTS)


def test_people_have_something_to_look_at(first_run: FirstRun) -> None:
    _, result = first_run
    for asset in (*ROW_ASSETS, *SET_ASSETS, "raw_prompts"):
        seen = metadata_of(result, asset)
        assert seen["dagster/row_count"] > 0, asset
        assert seen["dagster/column_schema"].columns, asset
        assert "|" in seen["preview"], asset
    for asset in (*ROW_ASSETS, *SET_ASSETS):
        assert {"new", "reused", "removed", "failed", "seconds", "snapshot"} <= metadata_of(result, asset).keys()
    for asset, name in (
        ("queries", "funnel"),
        ("shapes/videos", "contact_sheet"),
        ("shapes/eval_videos", "contact_sheet"),
        ("sft_checkpoint", "curves"),
        ("shapes/dpo_checkpoint", "curves"),
        ("shapes/evaluation", "scores"),
    ):
        assert "(data:image/" in metadata_of(result, asset)[name], asset


def test_the_evaluation_puts_the_methods_in_their_order(first_run: FirstRun) -> None:
    world, result = first_run
    scores = {
        row["method"]: row["value"]
        for row in world.rows(
            "SELECT method, value FROM lake.shapes.evaluation WHERE section = 'video_level' AND metric = 'score'"
        )
    }
    assert scores["original"] < scores["sft"] < scores["vpo"], scores
    assert scores["few_shot"] < scores["sft"], scores
    gain = world.rows(
        'SELECT low FROM "lake"."shapes"."evaluation" '
        "WHERE section = 'gains' AND method = 'vpo' AND against = 'original'"
    )
    assert gain[0]["low"] > 0
    evaluated = world.rows('SELECT DISTINCT method, checkpoint_id FROM "lake"."shapes"."evaluation"')
    ids = {row["method"]: row["checkpoint_id"] for row in evaluated}
    assert ids["original"] is None
    assert ids["sft"] == metadata_of(result, "sft_checkpoint")["checkpoint"]
    assert ids["vpo"] == metadata_of(result, "shapes/dpo_checkpoint")["checkpoint"]
    report = world.platform.home / "reports" / "shapes.html"
    assert ids["vpo"] in report.read_text(encoding="utf-8")


def test_both_kinds_of_feedback_give_pairs_of_the_dpo_split_only(first_run: FirstRun) -> None:
    world, _ = first_run
    counts = world.rows('SELECT feedback, count(*) AS n FROM "lake"."shapes"."preference_pairs" GROUP BY ALL')
    assert {row["feedback"] for row in counts if row["n"] >= 3} == {"text", "video"}
    splits = world.rows(
        'SELECT DISTINCT split FROM "lake"."shapes"."preference_pairs" JOIN "lake"."main"."queries" USING (query_id)'
    )
    assert splits == [{"split": "dpo"}]


def test_checkpoints_record_what_they_were_made_of(first_run: FirstRun) -> None:
    world, result = first_run
    for asset, table in (("sft_checkpoint", "sft_dataset"), ("shapes/dpo_checkpoint", "shapes.preference_pairs")):
        path, manifest = world.platform.checkpoints.load(metadata_of(result, asset)["checkpoint"])
        assert list(manifest.inputs) == [table]
        schema, _, name = table.rpartition(".")
        rows = world.rows(f'SELECT count(*) AS n FROM "lake"."{schema or "main"}"."{name}"')[0]["n"]
        assert manifest.metrics["examples"] == rows
        assert (path / "model.safetensors").is_file()
        work = world.platform.home / "training" / manifest.id / "states"
        assert [file.name for file in work.iterdir()] == ["training.log"]  # a state to resume from is kept no longer
    recorded = world.ids('"main"."checkpoints"', "checkpoint_id")
    assert recorded == {metadata_of(result, asset)["checkpoint"] for asset in CHECKPOINTS}


def test_a_second_run_does_nothing_at_all(first_run: FirstRun, world: World) -> None:
    again = world.materialize()
    assert sum(world.platform.counts.values()) == 0, world.platform.counts
    assert data_versions(again) == data_versions(first_run[1])
    for asset in (*ROW_ASSETS, *SET_ASSETS):
        seen = metadata_of(again, asset)
        assert (seen["new"], seen["redone"], seen["removed"], seen["failed"]) == (0, 0, 0, 0), asset
        assert seen["reused"] == seen["dagster/row_count"], asset
    for asset in CHECKPOINTS:
        assert metadata_of(again, asset)["trained_now"] is False


@pytest.mark.slow
def test_twenty_more_queries_cost_twenty_queries(world: World) -> None:
    files = world.settings["queries"]["files"]
    known = world.ids('"main"."queries"', "query_id")
    videos = world.ids('"shapes"."videos"', "video_id")
    more = [text for text in queries_of(60, first=50) if text not in set(queries_of(48))][:20]
    world.change(queries__files=[*files, str(write_queries(world.home / "more.jsonl", more))])
    result = world.materialize()

    new = world.ids('"main"."queries"', "query_id") - known
    assert len(new) == 20
    sft = world.rows('SELECT query_id FROM "lake"."main"."queries" WHERE keep AND split = \'sft\'')
    added = new & {row["query_id"] for row in sft}
    seen = metadata_of(result, "drafts")
    assert (seen["new"], seen["redone"]) == (len(added), 0)
    assert world.platform.counts["few-shot"] <= 20
    # The new examples make a new SFT checkpoint; its candidates are other rows, and so are the videos of these.
    assert world.platform.counts["sft trainings"] == world.platform.counts["dpo trainings"] == 1
    for asset in CHECKPOINTS:
        assert metadata_of(result, asset)["trained_now"] is True
    assert metadata_of(result, "shapes/eval_prompts")["reused"] > 0  # original and few-shot prompts stay
    assert not videos & world.ids('"shapes"."videos"', "video_id")
    assert world.platform.counts["videos"] == (
        metadata_of(result, "shapes/videos")["new"]
        + metadata_of(result, "shapes/videos")["redone"]
        + metadata_of(result, "shapes/eval_videos")["new"]
        + metadata_of(result, "shapes/eval_videos")["redone"]
    )


@pytest.mark.slow
def test_twenty_more_queries_of_a_fixed_policy_make_rows_for_these_only(world: World) -> None:
    """With the candidates' policy named, old candidates, videos and rewards stay as they are."""
    policy = world.rows('SELECT DISTINCT policy FROM "lake"."shapes"."candidates"')[0]["policy"]
    videos = world.ids('"shapes"."videos"', "video_id")
    more = [text for text in queries_of(60, first=50) if text not in set(queries_of(48))][:20]
    files = [*world.settings["queries"]["files"], str(write_queries(world.home / "more.jsonl", more))]
    world.change(queries__files=files, targets__shapes__candidates__policy=policy)
    old = world.ids('"main"."queries"', "query_id")
    result = world.materialize()
    for asset in ("candidates", "candidate_critiques", "videos", "video_rewards"):
        seen = metadata_of(result, f"shapes/{asset}")
        assert (seen["redone"], seen["removed"]) == (0, 0), asset
        touched = world.rows(
            f'SELECT DISTINCT query_id FROM "lake"."shapes"."{asset}" WHERE run_id = \'{result.run_id}\''
        )
        assert touched
        assert not {row["query_id"] for row in touched} & old
    assert videos < world.ids('"shapes"."videos"', "video_id")


@pytest.mark.slow
def test_another_policy_recomputes_its_branch_only(world: World, first_run: FirstRun) -> None:
    dpo = metadata_of(first_run[1], "shapes/dpo_checkpoint")["checkpoint"]
    world.change(targets__shapes__candidates__policy=dpo)
    result = world.materialize()
    before, after = data_versions(first_run[1]), data_versions(result)
    trunk = {asset for asset in ALL if "/" not in asset}
    assert {asset for asset in trunk if before[asset] != after[asset]} == set()
    assert world.platform.counts["sft trainings"] == 0
    assert world.platform.counts["dpo trainings"] == 1
    candidates = metadata_of(result, "shapes/candidates")
    assert candidates["redone"] == candidates["dagster/row_count"]
    assert world.rows('SELECT DISTINCT policy FROM "lake"."shapes"."candidates"') == [{"policy": dpo}]
    assert metadata_of(result, "shapes/dpo_checkpoint")["base"] == dpo
    assert (
        world.platform.counts["few-shot"]
        == world.platform.counts[metadata_of(result, "sft_checkpoint")["checkpoint"]]
        == 0
    )


def test_a_policy_that_is_not_there_is_one_clear_failure(world: World) -> None:
    world.change(targets__shapes__candidates__policy="dpo-0000000000000000")
    result = world.materialize("shapes/candidates", fails=True)
    assert "there is no checkpoint dpo-0000000000000000" in errors_of(result)
