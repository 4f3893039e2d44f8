"""A world in which no query is held out: the evaluation says so, and so does whoever asks for figures."""

from pathlib import Path

import pytest

from tests.assets.conftest import World, errors_of, queries_of, write_queries
from vpo_assets.evaluation_tables import NothingEvaluated, evaluation_rows
from vpo_assets.publishing.folders import publish_model


@pytest.mark.slow
def test_without_test_queries_there_is_one_clear_line(tmp_path: Path) -> None:
    write_queries(tmp_path / "queries.jsonl", queries_of(30))
    shares = {"sft_share": 0.5, "dpo_share": 0.5, "test_share": 0.0}
    world = World(tmp_path)
    world.change(queries__curation={**world.settings["queries"]["curation"], **shares})
    failed = world.materialize(fails=True)
    assert (
        "there are no test queries: none of the kept queries falls into the share that is held out "
        "(queries.curation.test_share = 0); take in more queries, or raise that share"
    ) in errors_of(failed)
    with pytest.raises(NothingEvaluated, match="target shapes has no evaluation yet"):
        evaluation_rows(world.platform, "shapes")
    (trained,) = world.ids("checkpoints WHERE stage = 'dpo'", "checkpoint_id")
    with pytest.raises(NothingEvaluated, match="target shapes has no evaluation yet"):
        publish_model(world.platform, "shapes", trained)
