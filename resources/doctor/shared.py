"""Do the servers that several machines share answer: Postgres with the catalog and the runs, and the object stores?

Belongs here: one question to each, and what is needed to ask it. Does not belong here: using them (storage/). A profile
that keeps everything in its home is asked nothing.
"""

from collections.abc import Callable, Iterator

from resources.doctor.findings import Finding, fault, ok
from resources.doctor.machine import Machine
from resources.settings import Profile
from resources.shared_storage import SQLITE
from storage.faults import LakeError
from storage.lake_place import SharedPlace, ask_database
from storage.object_store import KEYS, ObjectStoreAccess, ObjectStoreError, is_object_url
from storage.remote_files import RemoteFiles

SECONDS = 3.0
POSTGRES_PACKAGES = ("psycopg2", "duckdb_extension_postgres_scanner")
RUN_STORAGE_PACKAGES = ("dagster_postgres", "psycopg2")
STORE_PACKAGES = ("obstore",)


def check_shared(profile: Profile, machine: Machine) -> Iterator[Finding]:
    """A line for each package or key that is missing; if none is, one for each server and place, each asked once."""
    places = {"lake.data": profile.lake.data, "videos": profile.videos, "checkpoints": profile.checkpoints}
    remote = {key: place for key, place in places.items() if place is not None and is_object_url(place)}
    shared = profile.lake.catalog != SQLITE
    runs = profile.run_storage if profile.run_storage != SQLITE else None
    missing = [*_packages(shared, runs is not None, remote, machine), *_keys(remote, machine)]
    yield from missing
    if missing:
        return
    access = ObjectStoreAccess(profile.object_store.endpoint_url, profile.object_store.region, SECONDS)
    if shared:
        data = profile.lake.data or str(profile.home / "lake")
        place = SharedPlace(profile.lake.catalog, data, profile.home / "lake", access)
        yield _ask("lake", f"the lake at {place}", place.is_answering)
    for key in ("videos", "checkpoints"):
        if key in remote:
            files = RemoteFiles(remote[key], access)
            yield _ask(key, str(files), lambda files=files: files.look("lake.json"))  # type: ignore[misc]
    if runs is not None:
        yield _ask("run_storage", f"Dagster's storage at {runs}", lambda: ask_database(runs))


def _packages(shared: bool, runs: bool, remote: dict[str, str], machine: Machine) -> Iterator[Finding]:
    needed = [("lake.catalog", name) for name in POSTGRES_PACKAGES if shared]
    needed += [("run_storage", name) for name in RUN_STORAGE_PACKAGES if runs]
    needed += [(key, name) for key in list(remote)[:1] for name in STORE_PACKAGES]
    needed += [("lake.data", "duckdb_extension_httpfs")] if "lake.data" in remote else []
    for key, name in needed:
        if machine.version(name) is None:
            yield fault(key, f"the package {name} is not installed", "pip install 'vpo-platform[cluster]'")


def _keys(remote: dict[str, str], machine: Machine) -> Iterator[Finding]:
    for name in KEYS:
        if remote and not machine.environment.get(name, "").strip():
            yield fault(next(iter(remote)), f"{name} is not set", f"export {name}=...")


def _ask(key: str, what: str, question: Callable[[], object]) -> Finding:
    try:
        question()
    except (LakeError, ObjectStoreError) as error:
        said, _, remedy = str(error).partition("\n")
        lines = remedy.strip().splitlines()
        return fault(key, " ".join(said.split()), lines[-1] if lines else "see that it runs, and what the keys allow")
    return ok(key, f"{what} answers")
