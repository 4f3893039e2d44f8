"""A target whose video model is aligned by Diffusion-DPO: its pairs, its checkpoint, its films, and the table."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.rule import Rule
from starlette.testclient import TestClient

from tests.assets.conftest import World, errors_of, queries_of, write_queries
from tests.assets.test_removal import evaluations, without
from vpo_assets.alignment import video_model_id
from vpo_assets.alignment_table import alignment_grids, alignment_summary
from vpo_assets.optimizing import NoCheckpoint, chosen_checkpoint
from vpo_assets.planning import plan_all
from vpo_assets.publishing.folders import publish_model
from vpo_assets.replay import Verdict, replay
from vpo_assets.report.tables import with_interval
from vpo_assets.trace import trace
from vpo_assets.transfer import transfer_rows
from vpo_assets.viewer.application import Viewer
from vpo_assets.whole_evaluation import targets_to_show, whole_evaluation, whole_summary

pytestmark = pytest.mark.slow

ALIGNED = "shapes_aligned"
MORE: dict[str, Any] = {"like": "shapes", "feedback_from": "shapes", "alignment": {"steps": 2}}


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world that was materialized without the aligned target, and then with it."""
    home = tmp_path_factory.mktemp("aligned")
    write_queries(home / "queries.jsonl", queries_of(40))
    world = World(home, targets__shapes__seeds_per_prompt=2)
    world.materialize()
    filmed = {table: world.ids(f"shapes.{table}", "video_id || recipe") for table in ("videos", "eval_videos")}
    world.settings["targets"][ALIGNED] = MORE
    world.change()
    world.materialize()
    for table, before in filmed.items():
        assert world.ids(f"shapes.{table}", "video_id || recipe") == before  # nothing is filmed anew
    return world


@pytest.fixture
def copied(aligned: World, tmp_path: Path) -> World:
    home = tmp_path / "world"
    shutil.copytree(aligned.home, home)
    world = World(home, targets__shapes__seeds_per_prompt=2)
    world.settings["targets"][ALIGNED] = MORE
    world.change()
    return world


def test_the_better_film_of_a_query_is_chosen(aligned: World) -> None:
    pairs = aligned.rows(
        f"SELECT p.*, c.score - r.score AS difference, q.query, q.split FROM lake.{ALIGNED}.video_pairs AS p "
        "JOIN lake.shapes.video_rewards AS c ON c.video_id = p.chosen_video_id "
        "JOIN lake.shapes.video_rewards AS r ON r.video_id = p.rejected_video_id "
        "JOIN lake.main.queries AS q ON q.query_id = p.query_id"
    )
    assert len(pairs) == aligned.rows(f"SELECT count(*) AS n FROM lake.{ALIGNED}.video_pairs")[0]["n"] > 3
    for pair in pairs:
        assert pair["difference"] == pytest.approx(pair["margin"]) and pair["margin"] > 0.5
        assert (pair["prompt"], pair["split"]) == (pair["query"], "dpo")


def test_its_prompt_optimizer_is_found_by_its_id_and_its_video_model_is_trained(aligned: World) -> None:
    rows = aligned.rows("SELECT stage, target, checkpoint_id FROM lake.checkpoints ORDER BY stage")
    assert [(row["stage"], row["target"]) for row in rows] == [
        (*("aligned", ALIGNED),),
        ("dpo", "shapes"),
        ("sft", None),
    ]
    made = aligned.platform.checkpoints.manifest(rows[0]["checkpoint_id"])
    assert made.base.startswith("None@") and list(made.inputs) == [f"{ALIGNED}.video_pairs"]
    assert aligned.platform.counts["diffusion_dpo trainings"] == 1 and not aligned.platform.counts["dpo trainings"]
    (job,) = aligned.platform.trainer.jobs
    assert job.alignment is not None and job.alignment.steps == 2 and job.clips is not None
    assert replay(aligned.platform, made.id).verdict is Verdict.SAME_BYTES


def test_only_its_own_films_name_the_checkpoint(aligned: World) -> None:
    found = {}
    for target in ("shapes", ALIGNED):
        (row,) = aligned.rows(
            f"SELECT DISTINCT r.parts FROM lake.{target}.eval_videos JOIN lake.main.recipes AS r USING (recipe)"
        )
        found[target] = json.loads(row["parts"])
    assert found[ALIGNED].pop("video_model") == video_model_id(aligned.platform, ALIGNED)
    assert found[ALIGNED] == found["shapes"]
    assert all(plan.idle for plan in plan_all(aligned.platform))


def test_the_table_has_both_alone_and_together(aligned: World) -> None:
    rows = transfer_rows(aligned.platform)
    summary = {row["what"]: row for row in alignment_summary(aligned.profile, rows)}
    assert list(summary) == ["the user's query", "Diffusion-DPO", "VPO", "both"]
    means = {
        (target, row["method"]): row["score"]
        for target in ("shapes", ALIGNED)
        for row in aligned.rows(f"SELECT method, avg(score) AS score FROM lake.{target}.eval_rewards GROUP BY ALL")
    }
    cells = [("shapes", "original"), (ALIGNED, "original"), ("shapes", "vpo"), (ALIGNED, "vpo")]
    for row, cell in zip(summary.values(), cells, strict=True):
        assert row["score"]["value"] == pytest.approx(means[cell])
        if cell != cells[0]:
            assert row["gain"]["value"] == pytest.approx(means[cell] - means[cells[0]])
        if cell != cells[3]:
            assert row["gain_of_both"]["value"] == pytest.approx(means[cells[3]] - means[cell])
    assert summary["the user's query"]["gain"] is None and summary["both"]["gain_of_both"] is None
    (grid,) = alignment_grids(aligned.profile, rows)
    console = Console(width=200)
    with console.capture() as printed:
        console.print(grid)
    assert f"{means[cells[1]]:.3f} [" in printed.get()
    without_it = {name: target for name, target in aligned.profile.targets.items() if name != ALIGNED}
    assert not list(alignment_grids(aligned.profile.model_copy(update={"targets": without_it}), rows))


def test_the_viewer_and_vpo_evaluation_show_all_targets_and_the_comparison(aligned: World) -> None:
    with TestClient(Viewer(aligned.platform, "shapes").asgi, base_url="http://127.0.0.1:3001") as client:
        page = client.get("/").text
    shown = "".join(text for text in page.split("On every target")[1].split("What people say")[0])
    rows = transfer_rows(aligned.platform)
    for row in rows:
        if row["against_target"] is None:
            assert with_interval(row["value"], row["low"], row["high"]) in shown
    assert shown.count("VPO against Diffusion-DPO") == 1
    both = next(row for row in alignment_summary(aligned.profile, rows) if row["what"] == "both")
    assert f"{both['gain']['value']:.3f}" in shown
    targets = targets_to_show(aligned.platform, None)
    parts = list(whole_evaluation(aligned.platform, targets))
    assert [str(part.title) for part in parts if isinstance(part, Rule)] == ["shapes", ALIGNED, "between targets"]
    summary = whole_summary(aligned.platform, targets)
    assert list(summary["targets"]) == ["shapes", ALIGNED]
    assert summary["alignment"] == alignment_summary(aligned.profile, rows)


def test_a_card_says_that_the_video_model_was_aligned(copied: World) -> None:
    copied.change(publishing={"base_model": {"id": "mit"}, "sources": {"queries.jsonl": {"id": "mit"}}})
    (row,) = copied.rows(f"SELECT DISTINCT policy FROM lake.{ALIGNED}.eval_prompts WHERE method = 'vpo'")
    card = publish_model(copied.platform, ALIGNED, row["policy"]).card
    assert f"aligned by Diffusion-DPO ({video_model_id(copied.platform, ALIGNED)})" in card
    assert "aligned by" not in publish_model(copied.platform, "shapes", row["policy"]).card


def test_a_video_model_is_traced_to_its_films(aligned: World) -> None:
    console = Console(width=300)
    with console.capture() as printed:
        console.print(trace(aligned.platform, str(video_model_id(aligned.platform, ALIGNED))))
    said = printed.get()
    assert "pair of films" in said and "shapes candidate" in said and "not in the lake" not in said


def test_a_video_model_is_not_asked_for_prompts(aligned: World) -> None:
    with pytest.raises(NoCheckpoint, match="is a video model, which writes no prompts"):
        chosen_checkpoint(aligned.platform, "shapes", video_model_id(aligned.platform, ALIGNED))


def test_films_wait_for_a_video_model_that_is_not_trained(copied: World) -> None:
    copied.change(**{f"targets__{ALIGNED}__alignment": {"steps": 3}})
    said = errors_of(copied.materialize(f"{ALIGNED}/eval_videos", fails=True))
    assert f"is not trained yet: materialize {ALIGNED}/video_model first" in said
    plans = {plan.asset: plan for plan in plan_all(copied.platform)}
    assert plans[f"{ALIGNED}/video_model"].expected == 1 and plans["shapes/eval_videos"].idle
    assert (
        plans[f"{ALIGNED}/eval_videos"].expected
        == copied.platform.lake.query(f"SELECT count(*) AS n FROM lake.{ALIGNED}.eval_videos")["n"][0].as_py()
    )


def test_a_removed_query_leaves_the_pairs_of_films_and_the_video_model(copied: World) -> None:
    (gone,) = copied.rows(
        f"SELECT query_id, text FROM lake.main.raw_prompts WHERE query_id = "
        f"(SELECT min(query_id) FROM lake.{ALIGNED}.video_pairs)"
    )
    before = video_model_id(copied.platform, ALIGNED)
    without(copied, {gone["text"]})
    result = copied.materialize()
    assert gone["query_id"] not in copied.ids(f"{ALIGNED}.video_pairs", "query_id")
    checked = evaluations(result, "no_removed_query_learned")
    assert checked[f"{ALIGNED}/video_model"].passed
    assert video_model_id(copied.platform, ALIGNED) != before
