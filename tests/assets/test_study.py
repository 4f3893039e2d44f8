"""Ablations and another round: targets that share feedback or begin where another ended, in one evaluation."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey

from tests.assets.conftest import World, queries_of, write_queries
from vpo_assets.evaluation_tables import evaluation_rows, round_methods, round_sentences, rounds
from vpo_assets.planning import plan_all
from vpo_assets.trace import trace

pytestmark = pytest.mark.slow

OTHERS = {"text_only": "shapes_text_only", "video_only": "shapes_video_only", "round_2": "shapes_round_2"}
ALIKE = {"like": "shapes", "evaluated": False}
STUDY: dict[str, Any] = {
    "shapes_text_only": {**ALIKE, "feedback_from": "shapes", "pairs": {"feedback": "text"}},
    "shapes_video_only": {**ALIKE, "feedback_from": "shapes", "pairs": {"feedback": "video"}},
    "shapes_round_2": {**ALIKE, "candidates": {"policy": "shapes"}},
}


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world that was materialized without the study, and then with it."""
    home = tmp_path_factory.mktemp("study")
    write_queries(home / "queries.jsonl", queries_of(48))
    world = World(home)
    world.materialize()
    before = {row["checkpoint_id"] for row in world.rows("SELECT checkpoint_id FROM lake.checkpoints")}
    filmed = world.ids("shapes.videos", "video_id")
    world.settings["targets"] |= STUDY
    world.change(targets__shapes__evaluation__others=OTHERS)
    world.materialize()
    assert before < {row["checkpoint_id"] for row in world.rows("SELECT checkpoint_id FROM lake.checkpoints")}
    assert world.ids("shapes.videos", "video_id") == filmed
    return world


def checkpoint_of(world: World, target: str) -> str:
    rows = world.rows(f"SELECT checkpoint_id FROM lake.checkpoints WHERE target = '{target}'")
    assert len(rows) == 1
    return str(rows[0]["checkpoint_id"])


def test_targets_that_share_feedback_have_pairs_of_their_kind_only(studied: World) -> None:
    both = studied.rows("SELECT feedback, count(*) AS n FROM lake.shapes.preference_pairs GROUP BY ALL ORDER BY ALL")
    assert [row["feedback"] for row in both] == ["text", "video"]
    for kind in ("text", "video"):
        found = studied.rows(f"SELECT DISTINCT feedback FROM lake.shapes_{kind}_only.preference_pairs")
        assert found == [{"feedback": kind}]
        assert studied.rows(f"SELECT count(*) AS n FROM lake.shapes_{kind}_only.candidates") == [{"n": 0}]
    texts = studied.rows("SELECT query_id, chosen, rejected FROM lake.shapes_text_only.preference_pairs ORDER BY ALL")
    assert texts == studied.rows(
        "SELECT query_id, chosen, rejected FROM lake.shapes.preference_pairs WHERE feedback = 'text' ORDER BY ALL"
    )
    # A query with both kinds gives the text pair, so that without text there are more of video.
    (videos,) = studied.rows("SELECT count(*) AS n FROM lake.shapes_video_only.preference_pairs")
    assert videos["n"] >= both[1]["n"]


def test_the_second_round_begins_where_the_first_ended(studied: World) -> None:
    first = checkpoint_of(studied, "shapes")
    assert studied.rows("SELECT DISTINCT policy FROM lake.shapes_round_2.candidates") == [{"policy": first}]
    _, manifest = studied.platform.checkpoints.load(checkpoint_of(studied, "shapes_round_2"))
    assert manifest.base == first


def test_all_are_in_one_evaluation_with_their_checkpoints(studied: World) -> None:
    rows = studied.rows(
        "SELECT method, checkpoint_id, n FROM lake.shapes.evaluation WHERE section = 'video_level' AND metric = 'score'"
    )
    assert {row["method"] for row in rows} == {"original", "few_shot", "sft", "vpo", *OTHERS}
    assert len({row["n"] for row in rows}) == 1
    found = {row["method"]: row["checkpoint_id"] for row in rows}
    assert {m: found[m] for m in OTHERS} == {m: checkpoint_of(studied, target) for m, target in OTHERS.items()}
    gains = studied.rows("SELECT method, against FROM lake.shapes.evaluation WHERE section = 'gains'")
    assert {(m, other) for m in OTHERS for other in ("original", "sft", "vpo")} <= {
        (row["method"], row["against"]) for row in gains
    }
    pairs = rounds(studied.profile, "shapes")
    assert pairs == [("round_2", "vpo")]
    (said,) = round_sentences(evaluation_rows(studied.platform, "shapes"), pairs)
    assert said.startswith("round_2 went on from vpo and gained ")
    report = (studied.platform.home / "reports" / "shapes.html").read_text()
    assert "Round by round" in report and said in report
    prompts = studied.rows("SELECT method, value FROM lake.shapes.evaluation WHERE metric = 'faithful'")
    shares = {row["method"]: row["value"] for row in prompts}
    assert set(shares) == set(found) and all(0 <= share <= 1 for share in shares.values())
    assert shares["original"] == 1.0 > shares["few_shot"]
    keys = studied.definitions.resolve_asset_graph().get_all_asset_keys()
    assert AssetKey(["shapes_round_2", "evaluation"]) not in keys


def test_nothing_is_left_to_do_and_the_plan_says_so(studied: World) -> None:
    studied.renew()
    plans = {plan.asset: plan for plan in plan_all(studied.platform)}
    assert all(plan.expected == 0 for plan in plans.values()), {n: p.why for n, p in plans.items() if p.expected}
    names = list(plans)
    assert names.index("shapes_round_2/dpo_checkpoint") < names.index("shapes/eval_prompts")
    pairs = studied.rows("SELECT pair_id FROM lake.shapes_text_only.preference_pairs LIMIT 1")
    assert trace(studied.platform, pairs[0]["pair_id"], examples=1) is not None


@pytest.fixture
def copied(studied: World, tmp_path: Path) -> Callable[..., World]:
    """Makes a world of the same data with other methods in the evaluation."""

    def copy(others: dict[str, str]) -> World:
        shutil.copytree(studied.home, tmp_path / "world")
        world = World(tmp_path / "world")
        world.settings["targets"] |= STUDY
        world.change(targets__shapes__evaluation__others=others)
        return world

    return copy


def test_a_method_that_is_taken_out_leaves_the_evaluation(copied: Callable[..., World]) -> None:
    world = copied({"round_2": "shapes_round_2"})
    world.materialize()
    methods = {"original", "few_shot", "sft", "vpo", "round_2"}
    for table in ("evaluation", "eval_prompts", "eval_rewards"):
        assert {row["method"] for row in world.rows(f"SELECT DISTINCT method FROM lake.shapes.{table}")} == methods


def test_a_checkpoint_may_be_named_by_its_id(copied: Callable[..., World], studied: World) -> None:
    other = checkpoint_of(studied, "shapes_text_only")
    world = copied({"named": other})
    world.materialize("shapes/eval_prompts", "shapes/eval_critiques")
    found = world.rows("SELECT DISTINCT policy FROM lake.shapes.eval_prompts WHERE method = 'named'")
    assert found == [{"policy": other}]


def test_rounds_are_shown_in_the_order_of_training() -> None:
    assert round_methods([]) == ["sft", "vpo"]
    assert round_methods([("third", "second"), ("second", "vpo")]) == ["sft", "vpo", "second", "third"]
    assert round_methods([("second", "vpo"), ("third", "second")]) == ["sft", "vpo", "second", "third"]


@pytest.mark.parametrize(
    ("low", "high", "advice"),
    [(0.1, 0.3, "another round may pay"), (-0.1, 0.3, "stop here"), (-0.3, -0.1, "it was a step back")],
)
def test_a_round_is_worth_another_while_its_gain_is_clear(low: float, high: float, advice: str) -> None:
    row = {
        "section": "gains",
        "method": "round_2",
        "against": "vpo",
        "value": (low + high) / 2,
        "low": low,
        "high": high,
    }
    (said,) = round_sentences([row], [("round_2", "vpo"), ("round_3", "round_2")])
    assert said.endswith(advice)
