"""The graph with its rows worked on by Ray: the same tables as here, also when workers and nodes are killed."""

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from dagster import ExecuteInProcessResult

from storage.tables import (
    CANDIDATE_CRITIQUES,
    CANDIDATES,
    DRAFT_CRITIQUES,
    DRAFTS,
    SFT_DATASET,
    VIDEO_REWARDS,
    VIDEOS,
    Table,
)
from tests.assets.conftest import World, metadata_of, queries_of, write_queries
from tests.assets.fakes import FakePlatform, FakeVideoGenerator
from tests.resources.ray_nodes import HEAD, Nodes, two_nodes

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed (the extra `ray`)"),
]

NOT_THE_WORK = {"run_id", "made_at", "seconds_to_render"}
TEXTS = (DRAFTS, DRAFT_CRITIQUES, SFT_DATASET, CANDIDATES.at("shapes"), CANDIDATE_CRITIQUES.at("shapes"))
FILMS = (VIDEOS.at("shapes"), VIDEO_REWARDS.at("shapes"))
UP_TO_THE_FILMS = (
    *("raw_prompts", "queries", "drafts", "draft_critiques", "sft_dataset", "sft_checkpoint"),
    *("shapes/candidates", "shapes/candidate_critiques", "shapes/videos", "shapes/video_rewards"),
)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with two_nodes() as nodes:
        yield nodes


class WatchedCamera(FakeVideoGenerator):
    """Takes its time, and writes down each clip that it renders."""

    def __init__(self, counts: Counter[str], log: Path) -> None:
        super().__init__(counts)
        self.log = log

    def _film(self, prompt: str, seed: int) -> Any:
        with self.log.open("a") as log:
            log.write(json.dumps([os.getpid(), prompt, seed]) + "\n")
        time.sleep(0.03)
        return super()._film(prompt, seed)


class WatchedPlatform(FakePlatform):
    @cached_property
    def camera(self) -> FakeVideoGenerator:
        return WatchedCamera(self.counts, self.home / "videos.log")


def ray_world(home: Path, nodes: Nodes, **compute: Any) -> World:
    write_queries(home / "queries.jsonl", queries_of(48))
    compute = {"backend": "ray", "address": nodes.address, "node_address": HEAD, **compute}
    world = World(home, compute=compute, refresh={"text_batch": 16, "video_batch": 4})
    world.platform = WatchedPlatform(world.profile)
    return world


def content(world: World, table: Table) -> list[str]:
    """The rows without what tells one run from another."""
    rows = world.rows(f"SELECT * FROM {table.qualified}")
    return sorted(
        json.dumps(
            {name: value for name, value in row.items() if name not in NOT_THE_WORK}, sort_keys=True, default=str
        )
        for row in rows
    )


def same_tables(one: World, other: World) -> None:
    for table in (*TEXTS, *FILMS):
        assert content(one, table) == content(other, table), table.label


def rendered(world: World) -> list[Any]:
    return [json.loads(line) for line in (world.home / "data" / "videos.log").read_text().splitlines()]


def test_the_graph_on_ray_makes_the_same_tables(
    first_run: tuple[World, ExecuteInProcessResult], nodes: Nodes, tmp_path: Path
) -> None:
    here, _ = first_run
    there = ray_world(tmp_path, nodes)
    result = there.materialize(*UP_TO_THE_FILMS)
    same_tables(here, there)
    assert not there.platform.counts["videos"], "rendered by the driver"
    clips = rendered(there)
    assert len({tuple(clip[1:]) for clip in clips}) == len(clips)
    assert len({clip[0] for clip in clips}) == 2
    assert metadata_of(result, "shapes/videos")["new"] == len(clips)


@pytest.mark.long
def test_killed_workers_and_a_killed_node_lose_nothing(
    first_run: tuple[World, ExecuteInProcessResult], nodes: Nodes, tmp_path: Path
) -> None:
    here, _ = first_run
    there = ray_world(tmp_path, nodes, workers=3, batches_in_flight=1)
    victim = nodes.add()
    log = there.home / "data" / "videos.log"

    def kill() -> None:
        for done in (20, 40):
            _wait_for(log, done)
            os.kill(json.loads(log.read_text().splitlines()[-1])[0], signal.SIGKILL)
        _wait_for(log, 60)
        nodes.kill(victim)

    killer = threading.Thread(target=kill)
    killer.start()
    there.materialize(*UP_TO_THE_FILMS)
    killer.join()
    same_tables(here, there)
    clips = rendered(there)
    twice = len(clips) - len({tuple(clip[1:]) for clip in clips})
    assert 0 < twice <= 4 * 4, "more than what was at work when they died"


def _wait_for(log: Path, lines: int) -> None:
    while not log.exists() or len(log.read_text().splitlines()) < lines:
        time.sleep(0.02)
