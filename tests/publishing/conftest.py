"""A world whose checkpoints are real, tiny models, materialized once and copied for tests that change something."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from ml.fine_tuning import TrainingJob
from resources.trainer import OnProgress
from tests.assets.conftest import World, queries_of, write_queries
from tests.assets.fakes import FakeTrainer
from tests.tiny_model import save_tiny_model
from vpo_assets.evaluation_tables import best_checkpoint, evaluation_rows

LICENSED = {
    "base_model": {"id": "mit", "url": "https://example.org/mit"},
    "sources": {
        "queries.jsonl": {"id": "cc-by-4.0", "title": "Our [wishes] | of <b>2026</b>", "home": "https://e.org/a)b"}
    },
}


class TinyTrainer(FakeTrainer):
    """Its checkpoints are models that load."""

    def train(self, method: Literal["sft", "dpo"], job: TrainingJob, on_progress: OnProgress) -> None:
        super().train(method, job, on_progress)
        save_tiny_model(job.output)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a world after one run. Not to be changed."""
    home = tmp_path_factory.mktemp("published")
    write_queries(home / "queries.jsonl", queries_of(40))
    world = World(home)
    vars(world.platform)["trainer"] = TinyTrainer(world.platform.counts)
    world.materialize()
    return home


@pytest.fixture
def world(trained: Path, tmp_path: Path) -> Callable[..., World]:
    """Makes a copy of it, with settings changed."""

    def make(**changes: Any) -> World:
        home = tmp_path / "world"
        shutil.copytree(trained, home)
        return World(home, **({"publishing": LICENSED} | changes))

    return make


def best(world: World) -> str:
    """The id of its best checkpoint."""
    return best_checkpoint(evaluation_rows(world.platform, "shapes"))[0]


def front_matter(card: str) -> dict[str, Any]:
    """The YAML of a card."""
    import yaml

    loaded = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(loaded, dict)
    return json.loads(json.dumps(loaded))
