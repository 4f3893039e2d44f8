"""Optimizers of several targets on each other's video models, side by side."""

from base64 import b64decode
from io import BytesIO
from typing import Any

import pytest
from dagster import AssetKey
from PIL import Image

from tests.assets.conftest import World, metadata_of, queries_of, write_queries
from vpo_assets.filming import SHEET_ROWS
from vpo_assets.planning import plan_all
from vpo_assets.transfer import comparisons, optimizer_names, transfer_grids, transfer_rows

OTHER: dict[str, Any] = {
    "like": "shapes",
    "feedback_from": "shapes",
    "pairs": {"feedback": "text"},
    "evaluation": {"others": {"theirs": "shapes"}, "seeds_per_prompt": 1},
}
OPTIMIZERS = ["original", "few_shot", "sft", "vpo for shapes", "vpo for other"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, dict[str, Any]]:
    """Two targets, each filming the other's checkpoint too; the world, and what the asset shows."""
    home = tmp_path_factory.mktemp("transfer")
    write_queries(home / "queries.jsonl", queries_of(40))
    world = World(home)
    world.settings["targets"]["other"] = OTHER
    world.change(targets__shapes__evaluation__others={"theirs": "other"})
    return world, metadata_of(world.materialize(), "transfer")


@pytest.mark.slow
def test_every_optimizer_is_scored_on_every_targets_videos(compared: tuple[World, dict[str, Any]]) -> None:
    world, shown = compared
    rows = transfer_rows(world.platform)
    scores = {(row["optimizer"], row["target"]): row for row in rows if row["against_target"] is None}
    assert list(scores) == [(name, target) for target in ("shapes", "other") for name in OPTIMIZERS]
    for target, own, theirs in (("shapes", "shapes", "other"), ("other", "other", "shapes")):
        found = world.rows(
            f"SELECT method, value, low, high, checkpoint_id FROM lake.{target}.evaluation "
            "WHERE section = 'video_level' AND metric = 'score'"
        )
        names = {"vpo": f"vpo for {own}", "theirs": f"vpo for {theirs}"}
        assert len(found) == 5
        for row in found:
            score = scores[names.get(row["method"], row["method"]), target]
            assert score["value"] == pytest.approx(row["value"])
            assert score["low"] == pytest.approx(row["low"])
            assert score["checkpoint_id"] == row["checkpoint_id"]
    for name in OPTIMIZERS:
        assert f"| {name} |" in shown["scores"]
    assert shown["plot"].startswith("![")
    rows_of_sheet = SHEET_ROWS * len(["original", "vpo for shapes", "vpo for other"])
    sheet = Image.open(BytesIO(b64decode(shown["contact_sheet"].partition("base64,")[2].partition(")")[0])))
    assert sheet.width > 2 * 5 * 128, "two targets beside each other"
    assert 128 < sheet.height / rows_of_sheet < 256, "a row for each optimizer of each query"


@pytest.mark.slow
def test_gains_are_paired_by_query(compared: tuple[World, dict[str, Any]]) -> None:
    world, _ = compared
    rows = {
        (row["optimizer"], row["target"], row["against_optimizer"], row["against_target"]): row
        for row in transfer_rows(world.platform)
    }
    gain = rows["vpo for other", "other", "original", "shapes"]
    (wanted,) = world.rows(
        "SELECT avg(a.score - b.score) AS mean, count(*) AS n FROM "
        "(SELECT query_id, avg(score) AS score FROM lake.other.eval_rewards WHERE method = 'vpo' GROUP BY ALL) AS a "
        "JOIN (SELECT query_id, avg(score) AS score FROM lake.shapes.eval_rewards WHERE method = 'original' "
        "GROUP BY ALL) AS b USING (query_id)"
    )
    assert gain["value"] == pytest.approx(wanted["mean"])
    assert gain["n"] == wanted["n"] > 0
    # The stand-in films for both targets alike: the same words, with the same seeds, gain nothing by the other.
    same = rows["original", "other", "original", "shapes"]
    assert (same["value"], same["low"], same["high"]) == (0, 0, 0)


@pytest.mark.slow
def test_it_is_planned_last_and_left_alone_when_nothing_changed(compared: tuple[World, dict[str, Any]]) -> None:
    world, _ = compared
    world.renew()
    plans = plan_all(world.platform)
    assert plans[-1].asset == "transfer"
    assert plans[-1].expected == 0
    scores, _ = transfer_grids(transfer_rows(world.platform))
    assert scores.row_count == len(OPTIMIZERS)


def test_a_profile_with_one_evaluated_target_has_none(first_run: tuple[World, object]) -> None:
    world, _ = first_run
    assert AssetKey("transfer") not in world.definitions.resolve_asset_graph().get_all_asset_keys()
    assert transfer_rows(world.platform) == []
    assert list(transfer_grids([])) == []


def test_a_checkpoint_that_two_targets_come_to_is_one_optimizer(first_run: tuple[World, object]) -> None:
    world, _ = first_run
    world = World(world.home)
    world.settings["targets"]["other"] = {
        **OTHER,
        "pairs": {},
        "evaluation": {"others": {"old": "dpo-0123456789abcdef"}},
    }
    world.change()
    policies = {
        "shapes": {"sft": "sft-1", "vpo": "dpo-1"},
        "other": {"sft": "sft-1", "vpo": "dpo-1", "old": "dpo-0123456789abcdef"},
    }
    assert optimizer_names(world.profile, policies) == {
        "sft-1": "sft",
        "dpo-1": "vpo for shapes",
        "dpo-0123456789abcdef": "dpo-0123456789abcdef",
    }


def test_scores_of_unlike_rewards_are_not_compared() -> None:
    cells = [(name, target) for target in ("a", "b") for name in ("original", "vpo for a", "vpo for b")]
    found = comparisons(cells, ["a", "b"], {"a"})
    assert all(cell[1] == against[1] for cell, against in found)
    assert (("vpo for b", "b"), ("vpo for a", "b")) in found
    assert (("vpo for b", "b"), ("vpo for b", "a")) in comparisons(cells, ["a", "b"], {"a", "b"})
