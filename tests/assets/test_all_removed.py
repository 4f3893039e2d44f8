"""No query is left after a take-down of everything: that goes downstream like any other removal."""

import pytest

from storage.tables import BRANCH, TRUNK
from tests.assets.conftest import World, errors_of

TABLES = [table for table in (*TRUNK, *(table.at("shapes") for table in BRANCH)) if table.lineage]


def filled(world: World) -> set[str]:
    """The tables with a row of any query."""
    of_queries = [table for table in TABLES if "query_id" in {column.name for column in table.columns}]
    return {table.label for table in of_queries if world.platform.lake.count(table)}


@pytest.mark.slow
def test_a_take_down_of_everything_empties_every_table_and_nothing_is_learned(world: World) -> None:
    assert len(filled(world)) >= 12
    texts = [row["text"] for row in world.rows("SELECT text FROM lake.main.raw_prompts")]
    trained = world.ids("main.checkpoints", "checkpoint_id")
    listed = world.home / "down.txt"
    listed.write_text("".join(f"{text}\n" for text in texts))
    world.change(queries__take_down=[str(listed)])
    result = world.materialize(fails=True)
    assert filled(world) == set()
    assert "sft_dataset has no rows, so sft_checkpoint has nothing to learn from" in errors_of(result)
    assert world.ids("main.checkpoints", "checkpoint_id") == trained
    world.materialize("raw_prompts", "queries", "drafts", "draft_critiques", "sft_dataset")  # empty is a state, too


@pytest.mark.slow
def test_settings_that_drop_every_query_take_nothing_away(world: World) -> None:
    before = filled(world)
    world.change(queries__curation__minimum_words=500)
    result = world.materialize("queries", fails=True)
    assert "curation dropped every one of" in errors_of(result)
    assert filled(world) == before
