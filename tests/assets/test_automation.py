"""What starts by itself: conditions tick by tick, and the sweeper that finds what they miss."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from dagster import AssetKey, DagsterInstance, evaluate_automation_conditions
from dagster._core.test_utils import create_run_for_test

from storage.tables import RAW_PROMPTS
from tests.assets.conftest import World, queries_of, write_queries
from vpo_assets.automation import assets_under_way, followed_by, found_left_behind
from vpo_assets.definitions import EVERYTHING

pytestmark = pytest.mark.slow

TRUNK_AFTER_RAW = {"queries", "drafts", "draft_critiques", "sft_dataset"}
BRANCH = {
    f"shapes/{name}"
    for name in ("candidates", "candidate_critiques", "videos", "video_rewards", "preference_pairs", "dpo_checkpoint")
}
EVALUATION = {
    f"shapes/{name}"
    for name in ("eval_prompts", "eval_critiques", "eval_safety", "eval_videos", "eval_rewards", "evaluation")
}


@dataclass
class Daemon:
    """A world whose runs are all recorded in one instance, and ticks as the daemon makes them."""

    world: World
    instance: DagsterInstance
    cursor: Any = None
    requested: set[str] = field(default_factory=set)

    def tick(self) -> set[str]:
        """The assets that this tick asks for."""
        result = evaluate_automation_conditions(self.world.definitions, self.instance, cursor=self.cursor)
        self.cursor = result.cursor
        return {r.key.to_user_string() for r in result.results if isinstance(r.key, AssetKey) and r.true_subset.size}

    def run(self, assets: Sequence[str] | set[str], *, fails: bool = False) -> None:
        self.world.renew()
        result = self.world.definitions.resolve_job_def(EVERYTHING).execute_in_process(
            instance=self.instance,
            raise_on_error=not fails,
            asset_selection=[AssetKey.from_user_string(asset) for asset in assets] or None,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
        assert result.success is not fails

    def more_queries(self, count: int, *, first: int) -> None:
        """So many queries more in the profile's file, and in the lake."""
        file = self.world.home / "queries.jsonl"
        before = [query for query in file.read_text().splitlines() if query]
        write_queries(self.world.home / "more.jsonl", queries_of(count, first=first))
        file.write_text("\n".join(before) + "\n" + (self.world.home / "more.jsonl").read_text())
        self.run(["raw_prompts"])

    def left_behind(self) -> set[str]:
        """What the sweeper would refresh."""
        repository = self.world.definitions.get_repository_def()
        settings = self.world.profile.automation
        followed = {
            spec.key: followed_by(spec, settings)
            for assets in repository.assets_defs_by_key.values()
            for spec in assets.specs
        }
        return {key.to_user_string() for key in found_left_behind(self.instance, followed, repository.asset_graph)}


@pytest.fixture
def daemon(world: World) -> Iterator[Daemon]:
    """After everything was made once, and a first tick."""
    with DagsterInstance.ephemeral() as instance:
        daemon = Daemon(world, instance)
        daemon.run([])
        assert daemon.tick() == set()
        yield daemon


def test_new_queries_are_carried_up_to_the_checkpoint(daemon: Daemon) -> None:
    daemon.more_queries(6, first=50)
    asked = daemon.tick()
    assert asked == TRUNK_AFTER_RAW
    daemon.run(asked)
    assert daemon.tick() == set()


def test_a_checkpoint_trained_by_hand_carries_on_to_the_next(daemon: Daemon) -> None:
    daemon.more_queries(6, first=50)
    daemon.run(daemon.tick())
    daemon.run(["sft_checkpoint"])
    asked = daemon.tick()
    assert asked == BRANCH - {"shapes/dpo_checkpoint"}
    daemon.run(asked)
    assert daemon.tick() == set()
    daemon.run(["shapes/dpo_checkpoint"])
    assert daemon.tick() == EVALUATION


def test_training_starts_by_itself_where_the_profile_says_so(daemon: Daemon) -> None:
    daemon.world.change(automation={"training": True})
    assert daemon.tick() == set()
    daemon.more_queries(6, first=50)
    asked = daemon.tick()
    assert asked == TRUNK_AFTER_RAW | {"sft_checkpoint"} | BRANCH | EVALUATION
    daemon.run(asked)
    assert daemon.tick() == set()


def test_a_run_that_changes_nothing_starts_nothing(daemon: Daemon) -> None:
    daemon.run(["raw_prompts", "queries"])
    assert daemon.tick() == set()
    daemon.run([])
    assert daemon.tick() == set()
    assert daemon.left_behind() == set()


def test_what_follows_waits_for_blocking_checks(daemon: Daemon) -> None:
    lake = daemon.world.platform.lake
    twice = lake.read(RAW_PROMPTS).slice(0, 1)
    with lake.write({"asset": "raw_prompts"}) as transaction:
        transaction.execute(f"INSERT INTO {RAW_PROMPTS.qualified} BY NAME SELECT * FROM twice", twice=twice)
    daemon.run(["raw_prompts"], fails=True)  # its check `schema` finds a key that stands there twice
    assert daemon.tick() == set()
    assert daemon.left_behind() == set()
    with lake.write({"asset": "raw_prompts"}) as transaction:
        transaction.delete(RAW_PROMPTS, twice["query_id"])
    daemon.more_queries(3, first=70)
    assert daemon.tick() == TRUNK_AFTER_RAW


def test_an_update_that_nobody_saw_is_found_by_the_sweeper(daemon: Daemon) -> None:
    daemon.more_queries(6, first=50)
    daemon.cursor = None  # what the conditions had seen is gone, as if the update had come while a run was under way
    assert daemon.tick() == set()
    assert daemon.left_behind() == {"queries"}
    daemon.run(["queries"])
    assert daemon.left_behind() == {"drafts"}
    daemon.run(["drafts", "draft_critiques", "sft_dataset"])
    assert daemon.left_behind() == set()


def test_the_sweeper_leaves_alone_what_is_under_way(daemon: Daemon) -> None:
    daemon.more_queries(6, first=50)
    create_run_for_test(daemon.instance, asset_selection=frozenset({AssetKey("queries")}))
    assert assets_under_way(daemon.instance, [AssetKey("queries"), AssetKey("drafts")]) == {AssetKey("queries")}
    assert daemon.left_behind() == set()


def test_the_sweeper_waits_for_what_is_being_made_upstream(daemon: Daemon) -> None:
    daemon.more_queries(6, first=50)
    daemon.run(["queries"])
    create_run_for_test(daemon.instance, asset_selection=frozenset({AssetKey("raw_prompts")}))
    assert daemon.left_behind() == set()
