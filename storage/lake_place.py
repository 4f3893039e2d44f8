"""Where a lake lies: in a folder of one machine, or shared by many in Postgres and an object store.

Belongs here: attaching the catalog, the lock that writers take, and telling a new lake from one that has lost its
catalog. Does not belong here: what is done with the tables (lake.py).

A write looks first and writes then (a key that is there is replaced or left), so two at once could both find a key
missing. DuckLake's own check on commit only sees two deletes of one file. Hence a lock around each write transaction,
in both kinds of place:

- `FolderPlace`: the operating system's lock on ``lake.lock``. SQLite wants one writer at a time anyway.
- `SharedPlace`: an advisory lock in the Postgres that holds the catalog, held by a session. The server frees it when
  the session ends, so a killed writer, or one whose machine is gone, is in nobody's way for long. Readers never wait.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import duckdb
from filelock import FileLock, Timeout

from storage.extensions import load_extensions
from storage.faults import LakeError, LakeUnreachable, explained, is_unreachable
from storage.object_store import (
    ObjectLocation,
    ObjectStoreAccess,
    ObjectStoreError,
    duckdb_dead_end,
    duckdb_secret,
    explained_store_error,
    is_object_url,
    open_store,
    scrubbed,
)
from storage.tables import LAKE

LAYOUT = 1
MARKER = "lake.json"
CATALOG_SCHEMA = "main"
"""Of DuckLake's own tables; SQLite has no other, so that they have the same names in both."""
LOCK_TIMEOUT = 600.0
BETWEEN_TRIES = 0.5
"""Seconds between two tries to reach a server that is away."""
_Result = TypeVar("_Result")


class LakePlace(Protocol):
    """What a lake needs to know of the place where it lies."""

    folder: Path
    """A folder of this machine for what is not part of the lake's tables: notes about maintenance."""
    patience: float
    """Seconds for which a server that is away is waited for; 0 where there is none."""

    def __str__(self) -> str:
        """How the place is called in messages."""

    def attach(self, extension_folders: tuple[Path, ...], *, read_only: bool) -> duckdb.DuckDBPyConnection:
        """A connection in which the lake is attached; it is made if there is none yet. Raises LakeError."""

    def attach_writer(self, extension_folders: tuple[Path, ...]) -> duckdb.DuckDBPyConnection | None:
        """A connection for writing alone, where there must be one; None where the first will do. Raises LakeError."""

    def files_kept(self, writer: duckdb.DuckDBPyConnection) -> AbstractContextManager[None]:
        """A context in which DuckLake can reach no file through that connection. Every COMMIT stands in one: DuckLake
        takes a commit whose answer is lost for failed, and would remove files that the catalog names by then."""

    def locked(self, name: str = "lake", *, timeout: float | None = None) -> AbstractContextManager[None]:
        """A context in which nobody else, anywhere, is in one of that name. Raises LakeError after the timeout."""

    def require_lock(self) -> None:
        """LakeUnreachable if the lock that this thread took has been lost meanwhile."""

    @property
    def data(self) -> str:
        """Where the tables' files lie, with a slash at its end."""


class FolderPlace:
    """A lake in a folder: ``lake.sqlite`` (the catalog, WAL mode), ``data/`` (Parquet), ``lake.lock`` (held by
    whoever writes), ``lake.json`` (written once the catalog is complete)."""

    patience = 0.0

    def __init__(self, folder: Path, lock_timeout: float = LOCK_TIMEOUT) -> None:
        self.folder = Path(folder).absolute()
        self._lock_timeout = lock_timeout
        self._locks: dict[str, FileLock] = {}

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def data(self) -> str:
        return str(self.folder / "data") + "/"

    def attach(self, extension_folders: tuple[Path, ...], *, read_only: bool) -> duckdb.DuckDBPyConnection:
        try:
            (self.folder / "data").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LakeError(f"the lake cannot be made in {self.folder}: {error}") from error
        marker = self.folder / MARKER
        if marker.exists():
            self._refuse_lost_catalog()
            return self._attach(extension_folders, read_only=read_only)
        with self.locked():
            connection = self._attach(extension_folders, read_only=read_only)
            marker.write_text(json.dumps({"layout": LAYOUT}))
            return connection

    def attach_writer(self, extension_folders: tuple[Path, ...]) -> duckdb.DuckDBPyConnection | None:  # noqa: ARG002
        return None

    def files_kept(self, writer: duckdb.DuckDBPyConnection) -> AbstractContextManager[None]:  # noqa: ARG002
        """The catalog is in this process: no answer is lost without it."""
        return nullcontext()

    @contextmanager
    def locked(self, name: str = "lake", *, timeout: float | None = None) -> Iterator[None]:
        lock = self._locks.setdefault(name, FileLock(self.folder / f"{name}.lock"))
        try:
            lock.acquire(timeout=self._lock_timeout if timeout is None else timeout)
        except Timeout as error:
            raise LakeError(_waited(self, name, self._lock_timeout if timeout is None else timeout)) from error
        try:
            yield
        finally:
            lock.release()

    def require_lock(self) -> None:
        """The operating system takes no lock away from a process that lives."""

    def _refuse_lost_catalog(self) -> None:
        """Without this, a new, empty catalog would be made, and maintenance would take all data for leftovers."""
        catalog = self.folder / "lake.sqlite"
        if not catalog.exists() or catalog.stat().st_size == 0:
            raise LakeError(
                f"the lake in {self.folder} has lost its catalog: {catalog.name} is missing or empty. Restore it from "
                "a copy; to begin anew, move the whole folder away"
            )

    def _attach(self, extension_folders: tuple[Path, ...], *, read_only: bool) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect(config=CONFIG)
        load_extensions(connection, ("ducklake", "sqlite_scanner"), extension_folders)
        options = "READ_ONLY" if read_only else "META_JOURNAL_MODE 'WAL'"
        try:
            _attach_lake(
                connection, f"sqlite:{self.folder / 'lake.sqlite'}", self.data, f"{options}, META_BUSY_TIMEOUT 60000"
            )
            if not read_only and not (self.folder / MARKER).exists():
                _compress(connection)
        except duckdb.Error as error:
            connection.close()
            raise LakeError(explained(f"the lake in {self.folder} cannot be opened: {error}")) from error
        return connection


class SharedPlace:
    """A lake that many machines write: its catalog in Postgres, its files in an object store or a shared folder.

    `catalog`: the address of an empty database or of one that has this lake in it, ``postgresql://user@host/name``,
    without a password: that is libpq's to find (PGPASSWORD, or ~/.pgpass). `data`: ``s3://bucket/prefix``, or a folder
    that every machine has. `folder`: of this machine.

    There is one lake in a database, and one database to the data: ``lake.json`` beside the files says that they have a
    catalog, and a second one for the same files is refused.
    """

    def __init__(
        self,
        catalog: str,
        data: str,
        folder: Path,
        access: ObjectStoreAccess | None = None,
        *,
        lock_timeout: float = LOCK_TIMEOUT,
    ) -> None:
        check_catalog(catalog)
        self.folder = Path(folder).absolute()
        self.access = access or ObjectStoreAccess()
        self.patience = self.access.patience
        self.objects = ObjectLocation.parse(data) if is_object_url(data) else None
        self.catalog = catalog
        self._data = str(self.objects) if self.objects else str(Path(data).expanduser().absolute())
        self._lock_timeout = lock_timeout
        self._here = threading.local()
        self._way: tempfile.TemporaryDirectory[str] | None = None

    def __str__(self) -> str:
        parts = urlsplit(self.catalog)
        return f"{parts.hostname or 'localhost'}:{parts.port or 5432}{parts.path}, {self._data}"

    @property
    def data(self) -> str:
        return f"{self._data}/data/"

    def attach(self, extension_folders: tuple[Path, ...], *, read_only: bool) -> duckdb.DuckDBPyConnection:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._has_catalog():
            return self._attach(extension_folders, read_only=read_only)
        with self.locked():
            new = not self._has_catalog()
            if new and self._is_marked():
                raise LakeError(
                    f"the lake at {self} has lost its catalog: the database has none, and {MARKER} beside the files "
                    "says that there was one. Restore the database from a copy, or name the one that these files "
                    "belong to; to begin anew, name another place for the data"
                )
            connection = self._attach(extension_folders, read_only=read_only)
            if new:
                _compress(connection)
                self._mark()
            return connection

    def attach_writer(self, extension_folders: tuple[Path, ...]) -> duckdb.DuckDBPyConnection:
        """Its way to the files is its own, so that it can be closed while others read: for an object store the keys of
        its own DuckDB, for a folder a symbolic link."""
        if self.objects is None and self._way is None:
            self._way = tempfile.TemporaryDirectory(prefix="vpo-lake-")
            self._link.symlink_to(self.data.rstrip("/"), target_is_directory=True)
        return self._attach(extension_folders, read_only=False, data=f"{self._link}/" if self._way else self.data)

    @contextmanager
    def files_kept(self, writer: duckdb.DuckDBPyConnection) -> Iterator[None]:
        if self.objects is None:
            self._link.unlink()
        else:
            writer.execute(duckdb_dead_end(self.objects))
            writer.execute("SET GLOBAL http_retries = 0")
        try:
            yield
        finally:
            if self.objects is None:
                self._link.symlink_to(self.data.rstrip("/"), target_is_directory=True)
            else:
                self._let_in(writer)

    @contextmanager
    def locked(self, name: str = "lake", *, timeout: float | None = None) -> Iterator[None]:
        held = self._held()
        if held.get(name):  # this thread has it already
            held[name] += 1
            try:
                yield
            finally:
                held[name] -= 1
            return
        self.patiently(lambda: self._acquire(name, self._lock_timeout if timeout is None else timeout))
        held[name] = 1
        try:
            yield
        finally:
            held.pop(name, None)
            self._release(name)

    def require_lock(self) -> None:
        import psycopg2

        try:
            with self._here.session.cursor() as cursor:
                cursor.execute("SELECT 1")
        except psycopg2.Error as error:
            raise _lake_error(f"the session in {self} that held the lock lost its lock: {error}") from error

    def patiently(self, action: Callable[[], _Result]) -> _Result:
        """Do something that the catalog's server is needed for, again for a while if the server is away."""
        return patiently(action, self.patience)

    def is_answering(self) -> None:
        """One look at the server of the catalog and at the store, without waiting. Raises LakeError."""
        self._has_catalog()
        self._is_marked()

    def _attach(
        self, extension_folders: tuple[Path, ...], *, read_only: bool, data: str | None = None
    ) -> duckdb.DuckDBPyConnection:
        """`data`: by which way this connection goes to the files, if not by their own name."""
        connection = duckdb.connect(config=CONFIG)
        needed = ("ducklake", "postgres_scanner", *(("httpfs",) if self.objects else ()))
        load_extensions(connection, needed, extension_folders)

        def attach() -> None:
            try:
                options = f"METADATA_SCHEMA '{CATALOG_SCHEMA}'" + (", READ_ONLY" if read_only else "")
                _attach_lake(connection, f"postgres:{self.catalog}", data or self.data, options)
            except duckdb.Error as error:
                raise _lake_error(f"the lake at {self} cannot be opened: {error}") from error

        try:
            if self.objects:
                self._let_in(connection)
            else:
                Path(self.data).mkdir(parents=True, exist_ok=True)
            self.patiently(attach)
        except (LakeError, OSError) as error:
            connection.close()
            if isinstance(error, LakeError):
                raise
            raise LakeError(f"the lake at {self} cannot be opened: {error}") from error
        return connection

    def _let_in(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Give a connection the keys of the object store, and the patience to ask it again."""
        assert self.objects is not None
        try:
            connection.execute(*duckdb_secret(self.objects, self.access))
        except ObjectStoreError as error:
            raise LakeError(str(error)) from error
        for name, value in _http_retries(self.patience).items():
            connection.execute(f"SET GLOBAL {name} = {value}")

    @property
    def _link(self) -> Path:
        assert self._way is not None
        return Path(self._way.name) / "data"

    # ---- the session that holds locks ----------------------------------------------------------------------

    def _held(self) -> dict[str, int]:
        """How often this thread has taken each lock."""
        if not hasattr(self._here, "held"):
            self._here.held = {}
        held: dict[str, int] = self._here.held
        return held

    def _session(self) -> Any:
        """This thread's own session in Postgres; a new one if the last was cut off."""
        session = getattr(self._here, "session", None)
        if session is None or session.closed:
            session = self._here.session = _connected(self.catalog)
        return session

    def _ask(self, sql: str, parameters: tuple[Any, ...] = ()) -> Any:
        """One statement in this thread's session; its first value. Raises LakeUnreachable or LakeError."""
        import psycopg2

        try:
            with self._session().cursor() as cursor:
                cursor.execute(sql, parameters)
                return cursor.fetchone()[0] if cursor.description else None
        except psycopg2.errors.LockNotAvailable:
            raise
        except psycopg2.Error as error:
            with suppress(psycopg2.Error, AttributeError):  # there was no session yet
                self._here.session.close()
            raise _lake_error(f"the catalog of the lake at {self} does not answer: {error}") from error

    def _acquire(self, name: str, timeout: float) -> None:
        import psycopg2

        try:
            self._ask("SELECT set_config('lock_timeout', %s, false)", (f"{max(1, int(timeout * 1000))}ms",))
            self._ask("SELECT pg_advisory_lock(%s)", (_lock_number(name),))
        except psycopg2.errors.LockNotAvailable as error:
            raise LakeError(_waited(self, name, timeout)) from error

    def _release(self, name: str) -> None:
        """A session that was cut off in between has lost the lock already."""
        with suppress(LakeError):
            self._ask("SELECT pg_advisory_unlock(%s)", (_lock_number(name),))

    def _has_catalog(self) -> bool:
        """The table that says which release of DuckLake made the catalog is there as soon as the catalog is."""
        found = self.patiently(
            lambda: self._ask(f"SELECT to_regclass('{CATALOG_SCHEMA}.ducklake_metadata') IS NOT NULL")
        )
        return bool(found)

    # ---- the note beside the files -------------------------------------------------------------------------

    def _is_marked(self) -> bool:
        if self.objects is None:
            return (Path(self._data) / MARKER).exists()
        try:
            open_store(self.objects, self.access).head(MARKER)
        except FileNotFoundError:
            return False
        except ObjectStoreError as error:
            raise LakeError(str(error)) from error
        except Exception as error:  # obstore's errors have no base class but its own, and the package may be absent
            raise LakeError(explained_store_error(self.objects, error)) from None
        return True

    def _mark(self) -> None:
        note = json.dumps({"layout": LAYOUT}).encode()
        if self.objects is None:
            (Path(self._data) / MARKER).write_bytes(note)
            return
        try:
            open_store(self.objects, self.access).put(MARKER, note)
        except Exception as error:
            raise LakeError(explained_store_error(self.objects, error)) from None


# Nothing is fetched from the network behind the user's back, and SQL cannot see Python's variables.
CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "python_enable_replacements": False,
}


def check_catalog(address: str) -> None:
    """ValueError unless it is ``postgresql://user@host:port/database``, without a password."""
    try:
        parts = urlsplit(address)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        port_is_fine = False
    if not port_is_fine or parts.scheme not in ("postgresql", "postgres") or len(parts.path) < 2 or not parts.hostname:
        raise ValueError("must be sqlite or postgresql://user@host:port/database")
    if parts.password is not None or "password" in parts.query:
        raise ValueError("must not have a password in it: put that into the environment variable PGPASSWORD")
    if any(character in address for character in "'\"\\ \n\t;"):
        raise ValueError("must not have quotes, spaces, backslashes or semicolons in it")


def patiently(action: Callable[[], _Result], patience: float) -> _Result:
    """Do something, again for so many seconds while a server is away. Raises what the last try raised."""
    until = time.monotonic() + patience
    while True:
        try:
            return action()
        except LakeUnreachable:
            if time.monotonic() > until:
                raise
            time.sleep(BETWEEN_TRIES)


def _attach_lake(connection: duckdb.DuckDBPyConnection, catalog: str, data: str, options: str) -> None:
    # The data path is given each time and wins over the recorded one, so that a lake may be moved.
    given = f"DATA_PATH {literal(data)}, OVERRIDE_DATA_PATH true" + (f", {options}" if options else "")
    connection.execute(f"ATTACH {literal(f'ducklake:{catalog}')} AS {LAKE} ({given})")


def _compress(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(f"CALL {LAKE}.set_option('parquet_compression', 'zstd')")


def literal(text: str) -> str:
    """An SQL string, for the few statements that take no parameters."""
    return "'" + text.replace("'", "''") + "'"


def ask_database(address: str) -> None:
    """One look whether a database in Postgres lets this process in, without waiting for it. Raises LakeError."""
    import psycopg2

    try:
        _connected(address).close()
    except psycopg2.Error as error:
        raise _lake_error(f"{address} does not answer: {error}") from error


def _connected(address: str) -> Any:
    try:
        import psycopg2
    except ImportError as error:
        raise LakeError(
            "a catalog in Postgres needs the package psycopg2: pip install 'vpo-platform[cluster]'"
        ) from error
    # The server finds out within a minute that the machine of a session is gone, and frees what it held.
    options = "-c tcp_keepalives_idle=20 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=4"
    session = psycopg2.connect(address, connect_timeout=10, application_name="vpo", options=options)
    session.autocommit = True
    return session


def _http_retries(patience: float) -> dict[str, int]:
    """DuckDB's settings with which it asks an object store again for about so many seconds: 0.1 + 0.2 + 0.4 + …"""
    retries = 1
    while 0.1 * (2**retries - 1) < patience:
        retries += 1
    return {"http_retries": retries, "http_retry_wait_ms": 100, "http_retry_backoff": 2}


def _lock_number(name: str) -> int:
    """Postgres numbers its locks: a signed number of 64 bits."""
    return int.from_bytes(hashlib.sha256(f"vpo {name}".encode()).digest()[:8], "big", signed=True)


def _waited(place: LakePlace, name: str, seconds: float) -> str:
    doing = "taking files into" if name == "ingestion" else "writing to"
    where = "in" if isinstance(place, FolderPlace) else "at"
    said = f"another process has been {doing} the lake {where} {place} for over {seconds:g} seconds"
    return f"{said}; wait for it to end or stop it"


def _lake_error(message: str) -> LakeError:
    """The error of a message, fit to be shown."""
    kind = LakeUnreachable if is_unreachable(message) else LakeError
    return kind(explained(scrubbed(message)))
