"""Postgres and an S3 server on the loopback, one of each for all tests, and lakes in them."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.local_servers.postgres import LocalPostgres
from services.local_servers.running import LocalObjectStore, free_port, what_is_missing
from storage.lake_place import SharedPlace
from storage.object_store import ObjectStoreAccess

PASSWORD = "catalog-password-42"
KEYS = {"AWS_ACCESS_KEY_ID": "AKIATESTKEY", "AWS_SECRET_ACCESS_KEY": "store-secret+42", "PGPASSWORD": PASSWORD}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = what_is_missing()
    for item in items:
        if missing and item.path.parent == Path(__file__).parent and item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.skip(reason=missing))


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    """Not pytest's own folder, which only its user may enter: Postgres does not run as root."""
    folder = Path(tempfile.mkdtemp(prefix="vpo-servers-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(server_folder: Path) -> Iterator[LocalPostgres]:
    server = LocalPostgres(server_folder / "postgres", free_port(), PASSWORD)
    server.start()
    yield server
    server.stop("immediate")


@pytest.fixture(scope="session")
def object_store(server_folder: Path) -> Iterator[LocalObjectStore]:
    store = LocalObjectStore(server_folder, free_port())
    yield store
    store.stop()


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def access(object_store: LocalObjectStore) -> ObjectStoreAccess:
    return ObjectStoreAccess(endpoint_url=object_store.url, patience=30.0)


@pytest.fixture
def place(
    postgres: LocalPostgres, access: ObjectStoreAccess, tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[..., SharedPlace]:
    """Makes places of one new lake: the same each time, as each machine has it. `data`: a folder instead of S3."""
    name = f"test_{abs(hash((request.node.nodeid, os.getpid()))) % 10**9}"
    address = postgres.create_database(name)

    def make(data: str = f"s3://lake/{name}", **changes: object) -> SharedPlace:
        return SharedPlace(address, data, tmp_path / "folder", changes.get("access", access))  # type: ignore[arg-type]

    return make
