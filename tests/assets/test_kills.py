"""A few kills at random moments; benchmarks/kill_test.py does hundreds."""

import random
from pathlib import Path

import pytest

from tests.assets.kills import Killed, Tally, a_stage, campaign

KILLS = 8


@pytest.mark.slow
def test_killed_runs_lose_nothing_repeat_little_and_end_as_if_undisturbed(tmp_path: Path) -> None:
    rng, total = random.Random(20), Tally()
    with a_stage() as stage:
        reference = Killed(stage, tmp_path / "undisturbed", queries=16)
        reference.finish()
        total = campaign(stage, tmp_path / "killed", reference, KILLS, 6.0, rng, queries=16)
    assert total.problems == []
    assert total.kills.total() == KILLS or total.ended_before == 1
    assert total.kills.total() >= 3
