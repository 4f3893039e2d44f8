"""What tests of the command line and the settings share: a clean environment, and `vpo` as a person runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from typer.testing import Result

from resources.settings import load_profile
from storage import lake_place
from vpo_assets.platform import Platform

Vpo = Callable[..., Result]

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("any pace", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("any pace")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of servers and browsers first: the longest of them waits for minutes, in which others work."""
    items.sort(key=lambda item: item.path.parent.name != "ui")


@pytest.fixture(scope="session", autouse=True)
def extensions_trusted() -> Iterator[None]:
    """Spares each lake that a test opens the 0.3 s in which DuckDB checks the signatures of 70 MB of extensions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(lake_place.CONFIG, "allow_unsigned_extensions", True)
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder under the `local` profile, whatever the environment of the tests."""
    for variable in [name for name in os.environ if name.startswith("VPO_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("VPO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def platform(home: Path) -> Platform:
    """The platform of that home."""
    return Platform(load_profile())


@pytest.fixture
def vpo(home: Path) -> Vpo:
    """Run a command in this process."""
    from typer.testing import CliRunner

    from vpo_assets.command_line import app

    def run(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner(env={"COLUMNS": "400", "NO_COLOR": "1"}).invoke(app, list(arguments), input=stdin)

    return run


def vpo_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own: for runs of assets, whose definitions a process loads only once."""
    return subprocess.run(
        [sys.executable, "-m", "vpo_assets.command_line", *arguments],
        env={**os.environ, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
