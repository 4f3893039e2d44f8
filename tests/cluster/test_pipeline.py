"""The whole graph with its lake in Postgres and everything else in an object store, against the same on local files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.local_servers.running import LocalObjectStore
from storage.lake_place import SharedPlace
from storage.tables import BRANCH, TRUNK
from tests.assets.conftest import World, queries_of, write_queries

pytestmark = pytest.mark.cluster
TABLES = (*TRUNK, *(table.at("shapes") for table in BRANCH))
WITHOUT_ROWS = {"ingestion_failures", "taken_down", "transfer", "shapes.video_pairs"}
"""There is no bad input, and one target, whose video model is not aligned."""


def contents(world: World) -> dict[str, list[str]]:
    """Rows of every table, without lineage and what is measured; and without snapshots, which count the commits."""
    found = {}
    for table in TABLES:
        names = [name for name in table.content_columns if name != "snapshots"]
        rows = world.platform.lake.read(table, columns=names).to_pylist()
        found[table.label] = sorted(json.dumps(row, default=str, sort_keys=True) for row in rows)
    return found


@pytest.mark.timeout(300)
def test_the_graph_gives_the_same_tables_as_on_local_files(
    place: Callable[..., SharedPlace], object_store: LocalObjectStore, tmp_path: Path
) -> None:
    shared: dict[str, Any] = {
        "lake__catalog": place().catalog,
        "lake__data": "s3://lake/pipeline/lake",
        "videos": "s3://lake/pipeline/videos",
        "checkpoints": "s3://lake/pipeline/checkpoints",
        "object_store__endpoint_url": object_store.url,
    }
    worlds = {}
    queries = write_queries(tmp_path / "queries.jsonl", queries_of(16))
    for name in ("local", "machine_1", "machine_2"):
        (tmp_path / name).mkdir()
        files = {"queries__files": [str(queries)]}
        worlds[name] = World(tmp_path / name, **files, **({} if name == "local" else shared))
    local, one, two = worlds.values()
    local.materialize()
    one.materialize()
    wanted, found = contents(local), contents(one)
    assert {label for label in wanted if not wanted[label]} == WITHOUT_ROWS
    assert found == wanted
    assert one.platform.counts["videos"] == local.platform.counts["videos"] > 0

    two.materialize()
    assert not two.platform.counts, "another machine did again what one had done"
    assert contents(two) == wanted
    video = two.rows("SELECT uri, sha256 FROM lake.shapes.videos LIMIT 1")[0]
    assert len(two.platform.videos.get(video["uri"], video["sha256"]))
    checkpoint = two.rows("SELECT checkpoint_id AS id FROM lake.checkpoints LIMIT 1")[0]["id"]
    assert two.platform.checkpoints.load(checkpoint)[1].id == checkpoint
