"""Two processes that want the same checkpoint: one trains it, the other waits and finds it."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.assets.conftest import World
from tests.assets.fakes import FakePlatform
from vpo_assets.sft import SFT_TRAINING
from vpo_assets.training import alone, train

pytestmark = pytest.mark.slow


def test_the_second_training_of_a_checkpoint_waits_for_the_first_and_takes_its_result(world: World) -> None:
    world.change(sft__epochs=9)
    first, second = world.platform, FakePlatform(world.profile)
    snapshot = first.lake.snapshot()
    recipe = SFT_TRAINING.recipe(first, snapshot)
    training, waits = threading.Event(), threading.Event()
    real = first.trainer.train

    def slowly(*arguments: Any) -> None:
        training.set()
        assert waits.wait(60)
        real(*arguments)

    first.trainer.train = slowly
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        waits.set()

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(train, first, SFT_TRAINING, snapshot, recipe, lambda _: None, print)
        assert training.wait(60)
        other = pool.submit(train, second, SFT_TRAINING, snapshot, recipe, lambda _: None, say)
        manifests = one.result(120), other.result(120)
    assert [trained_now for _, trained_now in manifests] == [True, False]
    assert manifests[0][0] == manifests[1][0]
    assert (first.counts["sft trainings"], second.counts["sft trainings"]) == (1, 0)
    assert len(said) == 1 and "is training it; waiting for it to end" in said[0] and "process " in said[0]


HOLDER = """
import sys, time
from pathlib import Path
from vpo_assets.training import alone
with alone(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_holder_that_is_killed_holds_no_longer(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "work")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    waiting: list[str] = []

    def kill(line: str) -> None:
        waiting.append(line)
        holder.kill()
        holder.wait()

    with alone(tmp_path / "work", kill):
        assert waiting == [f"process {holder.pid}"]
    holder.stdout.close()
