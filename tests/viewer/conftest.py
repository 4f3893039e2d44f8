"""A home with pairs, held-out clips, an evaluation and checkpoints, made by the fake graph, as the viewer shows it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from resources.settings import load_profile
from tests.assets.conftest import World, queries_of, write_queries
from vpo_assets.platform import Platform
from vpo_assets.viewer.application import Viewer
from vpo_assets.viewer.results import Results

ADDRESS = "http://127.0.0.1:3001"
TARGET = "shapes"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The world after one run. Not to be changed: take `home` for that."""
    home = tmp_path_factory.mktemp("looked_at")
    write_queries(home / "queries.jsonl", queries_of(48))
    world = World(home)
    world.materialize()
    return world


@pytest.fixture
def world(made: World, tmp_path: Path) -> World:
    """A copy of it."""
    shutil.copytree(made.home, tmp_path / "world")
    return World(tmp_path / "world")


@pytest.fixture
def results(world: World) -> Results:
    return Results(world.platform, TARGET)


@pytest.fixture
def client(world: World) -> Iterator[TestClient]:
    """A browser's requests to the viewer of that world."""
    with TestClient(Viewer(world.platform, TARGET).asgi, base_url=ADDRESS) as client:
        yield client


@pytest.fixture
def nothing_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """A home in which nothing has been made."""
    monkeypatch.setenv("VPO_HOME", str(tmp_path / "empty"))
    return Platform(load_profile())
