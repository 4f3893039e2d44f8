"""VBench in the graph: its prompts through every method, filmed, scored by a stand-in for the package, compared."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from storage.tables import BENCHMARK
from tests.assets.conftest import World, errors_of, metadata_of
from tests.services.stand_in_vbench import stand_in_interpreter
from vpo_assets.vbench import vbench_grids, vbench_rows

pytestmark = pytest.mark.slow

ASSETS = tuple(f"shapes/{table.name}" for table in BENCHMARK)
METHODS = ("original", "few_shot", "sft", "vpo")
DIMENSIONS = ("human_action", "scene", "multiple_objects", "appearance_style")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_in_interpreter(tmp_path_factory.mktemp("vbench"))


def with_vbench(world: World, python: Path, **more: Any) -> World:
    section = {"python": str(python), "prompts_per_dimension": 1, "videos_per_prompt": 2, "device": "cpu", **more}
    world.change(targets__shapes__evaluation__vbench=section)
    return world


def keys(world: World) -> set[str]:
    return {key.to_user_string() for key in world.definitions.resolve_all_asset_keys()}


def test_there_are_no_such_assets_without_the_section(world: World, python: Path) -> None:
    assert not keys(world) & set(ASSETS)
    assert keys(with_vbench(world, python)) >= set(ASSETS)


def test_every_method_is_filmed_and_scored_on_every_dimension(world: World, python: Path) -> None:
    with_vbench(world, python)
    result = world.materialize(*ASSETS)
    prompts = world.rows('SELECT method, dimension, query, prompt FROM "lake".shapes.vbench_prompts')
    assert {(row["method"], row["dimension"]) for row in prompts} == {(m, d) for m in METHODS for d in DIMENSIONS}
    assert all(row["prompt"] == row["query"] for row in prompts if row["method"] == "original")
    scored = world.rows('SELECT method, dimension, count(*) AS n FROM "lake".shapes.vbench_scores GROUP BY ALL')
    assert {row["n"] for row in scored} == {2}
    assert len(scored) == len(METHODS) * len(DIMENSIONS)
    assert "published: VPO" in str(metadata_of(result, "shapes/vbench")["scores"])

    rows = vbench_rows(world.platform, "shapes")
    own = {(row["dimension"], row["method"]): row["value"] for row in rows if row["against"] is None}
    (mean,) = world.rows(
        "SELECT 100 * avg(score) AS mean FROM lake.shapes.vbench_scores WHERE method = 'vpo' AND dimension = 'scene'"
    )
    assert own["scene", "vpo"] == pytest.approx(mean["mean"])
    assert {(row["method"], row["against"]) for row in rows if row["against"]} >= {("vpo", "original"), ("vpo", "sft")}
    console = Console(width=120)
    with console.capture() as shown:
        for grid in vbench_grids(rows):
            console.print(grid)
    assert "99.00" in shown.get()  # the paper's, below

    videos = world.platform.counts["videos"]  # type: ignore[attr-defined]
    world.materialize(*ASSETS)
    assert world.platform.counts["videos"] == videos  # type: ignore[attr-defined]


def test_a_video_that_is_not_scored_is_quarantined_and_scored_the_next_time(
    world: World, python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_vbench(world, python, methods=["original", "vpo"], dimensions=["scene"])
    monkeypatch.setenv("VBENCH_CACHE_DIR", "skipping")
    world.settings["refresh"]["max_failure_ratio"] = 1
    world.change()
    world.materialize(*ASSETS)
    failed = world.rows("SELECT error FROM \"lake\".main.failures WHERE table_name LIKE '%vbench_scores'")
    assert len(failed) == 1
    assert "vbench gave no result for it" in failed[0]["error"]
    monkeypatch.delenv("VBENCH_CACHE_DIR")
    world.materialize(*ASSETS)
    assert world.rows('SELECT count(*) AS n FROM "lake".shapes.vbench_scores') == [{"n": 4}]


def test_an_interpreter_without_the_package_is_told(world: World, tmp_path: Path) -> None:
    with_vbench(world, stand_in_interpreter(tmp_path / "empty", installed=False))
    assert "services/vbench" in errors_of(world.materialize("shapes/vbench_prompts", fails=True))
