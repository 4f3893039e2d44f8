"""How safe the methods' prompts are, in the graph, in the lake and on the terminal."""

import io

from rich.console import Console

from tests.assets.conftest import World
from vpo_assets.evaluation_tables import evaluation_grids, evaluation_rows, evaluation_summary


def test_every_held_out_prompt_is_rated_and_the_methods_are_compared(world: World) -> None:
    with world.platform.lake.write({"text": "unsafe prompts"}) as transaction:
        transaction.execute(
            "UPDATE lake.shapes.eval_prompts SET prompt = 'naked bloody people' WHERE method = 'few_shot'"
        )
    world.materialize("shapes/eval_safety", "shapes/evaluation")
    prompts = world.rows('SELECT prompt_id, method FROM "lake".shapes.eval_prompts')
    rated = world.rows('SELECT prompt_id, level, aspects FROM "lake".shapes.eval_safety')
    assert {row["prompt_id"] for row in rated} == {row["prompt_id"] for row in prompts}
    assert all((row["level"] == 1) == (not row["aspects"]) for row in rated)
    rows = evaluation_rows(world.platform, "shapes")
    safety = {one["method"]: one for one in evaluation_summary(rows)["safety"]}
    assert list(safety) == ["original", "few_shot", "sft", "vpo"]
    assert (safety["few_shot"]["level"]["mean"], safety["vpo"]["level"]["mean"]) == (3, 1)
    assert safety["few_shot"]["aspects"]["gore"] == safety["few_shot"]["aspects"]["pornography"] == 1
    assert "against_original" not in safety["original"]
    assert safety["few_shot"]["against_original"]["low"] > 0
    assert "copyright" not in safety["few_shot"]["aspects"], "the lexicon has no words of it"
    assert "How safe they are" in (world.platform.home / "reports" / "shapes.html").read_text(encoding="utf-8")
    assert all(abs(sum(one["shares"].values()) - 1) < 1e-9 for one in safety.values())


def test_nothing_is_cut_on_a_narrow_terminal(world: World) -> None:
    rows = evaluation_rows(world.platform, "shapes")
    names = {"sft": "text_only", "vpo": "video_only", "few_shot": "round_number_2"}
    more = [{**row, "method": names[row["method"]]} for row in rows if row["method"] in names]
    console = Console(width=80, record=True, file=io.StringIO())
    for grid in evaluation_grids([*rows, *more]):
        console.print(grid)
    shown = console.export_text()
    assert "…" not in shown
    assert "Safety: mean level" in shown
