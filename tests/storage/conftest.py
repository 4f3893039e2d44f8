"""One lake for all storage tests of a module: opening one costs more than most tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from storage.lake import Lake


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    with Lake(tmp_path_factory.mktemp("lake") / "it's a lake") as lake:
        yield lake
