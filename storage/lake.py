"""The lake: tables as Parquet files with an SQL catalog (DuckLake), read and written by DuckDB.

The one module that knows it is DuckLake. Here: opening, reading, writing in transactions, time travel,
export, maintenance. Which tables there are is in `storage.tables`; what rows to compute in `storage.refresh`.

Embedded layout of a lake's folder: ``lake.sqlite`` (the catalog, WAL mode), ``data/`` (Parquet),
``lake.lock`` (held by whoever writes), ``lake.json`` (written once the catalog is complete). SQLite lets one
process write at a time and DuckLake does not wait its turn, so every write transaction takes the lock;
readers see the last committed snapshot and never wait. The lock is the operating system's: it is free again
when its holder dies.
"""

# ruff: noqa: S608 (SQL names come from Table, which takes plain identifiers only; values are parameters)

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout

from storage.extensions import ExtensionMissing, load_extensions
from storage.faults import explained, is_locked
from storage.ids import CONTENT_ID_MACRO
from storage.retention_log import when_expired
from storage.tables import LAKE, Table, quoted

__all__ = ["ExtensionMissing", "Lake", "LakeError", "ReadOnlyConnection", "Transaction"]

LAYOUT = 1
AUTHOR = "vpo"
SECONDS_FOR_OTHER_PROGRAMS = 60.0
_CATALOG = f"__ducklake_metadata_{LAKE}.main"
"""DuckLake's own tables, for questions that its functions answer only by reading the whole history."""

# Nothing is fetched from the network behind the user's back, and SQL cannot see Python's variables.
_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "python_enable_replacements": False,
}


class LakeError(Exception):
    """Something is wrong with a query, with rows to be written or with the lake itself; says what."""


class LakeLocked(LakeError):
    """Another program, none of ours, writes to the catalog right now."""


class Transaction:
    """What can be done inside `Lake.write`: all of it is committed together, or none."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection) -> None:
        self._cursor = cursor

    def upsert(self, table: Table, rows: pa.Table) -> None:
        """Write rows; a row whose key is already there is replaced."""
        checked = checked_rows(table, rows)
        if checked.num_rows == 0:
            return
        self.delete(table, checked[table.key])
        with _registered(self._cursor, incoming=checked):
            _run(self._cursor, f"INSERT INTO {table.qualified} BY NAME SELECT * FROM incoming")

    def insert(self, table: Table, rows: pa.Table) -> int:
        """Write the rows whose key is not there yet; the others stay as they are. How many were written."""
        checked = checked_rows(table, rows)
        if checked.num_rows == 0:
            return 0
        key = quoted(table.key)
        with _registered(self._cursor, incoming=checked):
            return self.execute(
                f"INSERT INTO {table.qualified} BY NAME SELECT * FROM incoming ANTI JOIN "
                f"(SELECT {key} FROM {table.qualified}) USING ({key})"
            )

    def delete(self, table: Table, keys: Collection[str] | pa.Array | pa.ChunkedArray) -> int:
        """Remove rows by key; keys that are not there are no error. How many were removed."""
        gone = keys if isinstance(keys, pa.Array | pa.ChunkedArray) else pa.array(list(keys), pa.string())
        if len(gone) == 0:
            return 0
        with _registered(self._cursor, gone=pa.table({"key": gone})):
            return self.execute(f"DELETE FROM {table.qualified} WHERE {quoted(table.key)} IN (SELECT key FROM gone)")

    def execute(self, sql: str, parameters: Sequence[Any] = (), **relations: pa.Table) -> int:
        """Any changing statement; `relations` are Arrow tables it may name. How many rows it changed."""
        with _registered(self._cursor, **relations):
            changed = _run(self._cursor, sql, parameters).fetchone()
        return int(changed[0]) if changed else 0

    def query(self, sql: str, parameters: Sequence[Any] = (), **relations: pa.Table) -> pa.Table:
        """Read inside the transaction: its own changes are visible."""
        with _registered(self._cursor, **relations):
            return _arrow(_run(self._cursor, sql, parameters))


_TABLE_FUNCTIONS_FOR_PEOPLE = frozenset(
    {
        *("unnest", "range", "generate_series", "duckdb_columns", "duckdb_tables", "duckdb_schemas"),
        *("duckdb_functions", "snapshots", "current_snapshot", "options", "table_info", "table_changes"),
        *("table_insertions", "table_deletions", "ducklake_snapshots", "ducklake_table_info"),
        *("ducklake_table_changes", "ducklake_table_insertions", "ducklake_table_deletions"),
    }
)


class ReadOnlyConnection:
    """A session for people: it can read the lake, and neither change it nor touch other files.

    Only SELECT, DESCRIBE, SHOW and SUMMARIZE are let through, with the table functions listed above: others
    read other databases (sqlite_scan) or hide statements (query). The lake is attached read-only, DuckDB
    refuses every file outside the lake's data folder, and its settings are locked.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> pa.Table:
        """Answer one statement. Anything else than reading is a LakeError."""
        self._check(sql)
        return _arrow(_run(self._connection, sql, parameters))

    def _check(self, sql: str) -> None:
        try:
            statements = self._connection.extract_statements(sql)
        except duckdb.Error as error:
            raise LakeError(str(error)) from error
        if len(statements) != 1:
            raise LakeError(f"one SQL statement at a time, please: this has {len(statements)}")
        parsed = _run(self._connection, "SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchone()
        tree = json.loads(parsed[0]) if parsed else {"error": True}
        if tree["error"]:
            raise LakeError(f"this session only reads; use SELECT ({tree.get('error_message', 'not allowed')})")
        refused = sorted(set(_table_functions(tree)) - _TABLE_FUNCTIONS_FOR_PEOPLE)
        if refused:
            raise LakeError(f"this session only reads the lake: {refused[0]}() is not allowed")

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> ReadOnlyConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Lake:
    """The lake in `folder`, made if it is not there. May be used by several threads and processes at once.

    `extension_folders` are searched for DuckDB extension files before anything else. A writer waits up to
    `lock_timeout` seconds for others to finish. Raises ExtensionMissing or LakeError.
    """

    def __init__(self, folder: Path, *, extension_folders: Sequence[Path] = (), lock_timeout: float = 600.0) -> None:
        self.folder = Path(folder).absolute()
        self._extension_folders = tuple(extension_folders)
        self._lock = FileLock(self.folder / "lake.lock", timeout=lock_timeout)
        self._writing = threading.local()
        # Tables and columns are never dropped, so that what has been seen once need not be looked up again.
        self._seen: set[str] = set()
        self._complete: set[Table] = set()
        try:
            (self.folder / "data").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LakeError(f"the lake cannot be made in {self.folder}: {error}") from error
        marker = self.folder / "lake.json"
        if marker.exists():
            self._refuse_lost_catalog()
            self._connection = self._attach(read_only=False)
        else:
            with self._locked():
                self._connection = self._attach(read_only=False)
                marker.write_text(json.dumps({"layout": LAYOUT}))

    # ---- reading -------------------------------------------------------------------------------------------

    def query(self, sql: str, parameters: Sequence[Any] = (), **relations: pa.Table) -> pa.Table:
        """Run a SELECT. Tables go by name (``drafts``, ``shapes.videos``); `relations` are Arrow tables the
        SQL may name besides. Values belong into `parameters` (``?``), never into the text."""
        with self.reading() as cursor, _registered(cursor, **relations):
            return _arrow(_run(cursor, sql, parameters))

    def read(
        self,
        table: Table,
        *,
        version: int | None = None,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        parameters: Sequence[Any] = (),
    ) -> pa.Table:
        """Rows of a table with its Arrow types, now or as of snapshot `version`.

        `where` is an SQL condition with ``?`` for each of `parameters`. Columns that the snapshot did not
        have yet come back as nulls. LakeError if the table or the snapshot is not there.
        """
        wanted = [field for field in table.arrow_schema if columns is None or field.name in columns]
        unknown = set(columns or ()) - {field.name for field in wanted}
        if unknown:
            raise LakeError(f"table {table.label} has no column {', '.join(sorted(unknown))}")
        source = table.qualified + ("" if version is None else f" AT (VERSION => {int(version)})")
        if version is not None:
            self.require_snapshot(version)
        with self.reading() as cursor:
            there = {name for name, *_ in _run(cursor, f"SELECT * FROM {source} LIMIT 0").description or []}
            names = ", ".join(quoted(f.name) if f.name in there else f"NULL AS {quoted(f.name)}" for f in wanted)
            condition = f" WHERE {where}" if where else ""
            rows = _arrow(_run(cursor, f"SELECT {names} FROM {source}{condition}", parameters))
        return rows.cast(pa.schema([field.with_nullable(True) for field in wanted]))

    def exists(self, table: Table) -> bool:
        """Whether the table has been made."""
        if table.qualified not in self._seen and self._columns_there(table):
            self._seen.add(table.qualified)
        return table.qualified in self._seen

    def count(self, table: Table) -> int:
        """Number of rows; 0 if the table has not been made yet."""
        if not self.exists(table):
            return 0
        return int(self.query(f"SELECT count(*) AS n FROM {table.qualified}")["n"][0].as_py())

    def snapshot(self) -> int:
        """Id of the latest committed snapshot: what `version` takes."""
        return int(self.query(f"SELECT id FROM {LAKE}.current_snapshot()")["id"][0].as_py())

    def has_snapshot(self, snapshot: int) -> bool:
        """Whether the lake can still be read as of this snapshot."""
        rows = self.query(f"SELECT 1 AS one FROM {_CATALOG}.ducklake_snapshot WHERE snapshot_id = ?", [snapshot])
        return bool(rows.num_rows)

    def require_snapshot(self, snapshot: int) -> None:
        """LakeError that says what became of a snapshot that is not there (any more)."""
        if self.has_snapshot(snapshot):
            return
        kept = self.query(
            "SELECT min(snapshot_id) AS first, max(snapshot_id) AS last, count(*) AS n "
            f"FROM {_CATALOG}.ducklake_snapshot"
        ).to_pylist()[0]
        when = when_expired(self.folder, snapshot)
        if when is not None:
            fate = f"was taken by retention on {when:%Y-%m-%d at %H:%M} UTC"
        elif snapshot > kept["last"]:
            fate = "has not been made yet"
        else:
            fate = "is gone, by no maintenance that this lake knows of"
        raise LakeError(
            f"snapshot {snapshot} of the lake in {self.folder} {fate}; {kept['n']} snapshots from {kept['first']} to "
            f"{kept['last']} are left"
        )

    def commits(self, limit: int = 20) -> list[dict[str, Any]]:
        """The last commits, newest first: snapshot, time, and the message that `write` was given."""
        rows = self.query(
            "SELECT snapshot_id AS snapshot, snapshot_time AS time, commit_extra_info AS message "
            f"FROM {LAKE}.snapshots() ORDER BY snapshot_id DESC LIMIT ?",
            [limit],
        ).to_pylist()
        return [{**row, "message": json.loads(row["message"] or "{}")} for row in rows]

    def commits_since(
        self, snapshot: int, reader: Transaction | Lake | None = None
    ) -> list[tuple[int, dict[str, Any]]]:
        """Snapshot and message of every later commit, the oldest first. Cheap however long the history is.

        `reader`: a transaction, to see what is committed as of its beginning.
        """
        rows = (reader or self).query(
            f"SELECT snapshot_id AS snapshot, commit_extra_info AS message FROM {_CATALOG}.ducklake_snapshot_changes "
            "WHERE snapshot_id > ? ORDER BY snapshot_id",
            [snapshot],
        )
        return [(row["snapshot"], json.loads(row["message"] or "{}")) for row in rows.to_pylist()]

    def export(self, table: Table, path: Path, version: int | None = None) -> int:
        """Write a table, now or as of a snapshot, as one plain Parquet file. How many rows."""
        import pyarrow.parquet as parquet

        rows = self.read(table, version=version)
        path = Path(path)
        unfinished = path.with_name(path.name + ".unfinished")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            parquet.write_table(rows, unfinished, compression="zstd")
            unfinished.replace(path)
        except OSError as error:
            raise LakeError(f"cannot write {path}: {error}") from error
        return int(rows.num_rows)

    def read_only_connection(self) -> ReadOnlyConnection:
        """A session for people's own SQL; see ReadOnlyConnection."""
        connection = self._attach(read_only=True)
        connection.execute(f"USE {LAKE}")
        connection.execute(CONTENT_ID_MACRO)
        connection.execute(f"SET allowed_directories = [{_literal(str(self.folder / 'data') + '/')}]")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        return ReadOnlyConnection(connection)

    # ---- writing -------------------------------------------------------------------------------------------

    def create(self, *tables: Table) -> None:
        """Make tables that are not there and add columns that are missing; write nothing if all is well."""
        if all(self._is_complete(table) for table in tables):
            return
        with self.write({"asset": tables[0].label, "text": "create tables"}) as transaction:
            for table in tables:
                self._create(transaction, table)

    @contextmanager
    def write(self, message: Mapping[str, Any]) -> Iterator[Transaction]:
        """One transaction: everything done in the ``with`` block is committed at its end, or nothing if it
        raises. `message` (say run_id, asset, text; JSON values) is kept with the commit, see `commits`."""
        if getattr(self._writing, "now", False):
            raise LakeError("a write transaction is already open in this thread: use that one")
        extra = json.dumps(dict(message), default=str, ensure_ascii=False)
        text = " ".join(str(message[name]) for name in ("asset", "text") if message.get(name)) or "write"
        with self._locked(), self.reading() as cursor:
            self._writing.now = True
            try:
                yield Transaction(cursor)
                _run(cursor, f"CALL {LAKE}.set_commit_message(?, ?, extra_info => ?)", [AUTHOR, text, extra])
                _run(cursor, "COMMIT")
            except BaseException:
                _roll_back(cursor)
                raise
            finally:
                self._writing.now = False

    def commit(self, message: Mapping[str, Any], work: Callable[[Transaction], None]) -> None:
        """One transaction, as `write`; it is done again for a while if a program that does not keep to our lock (a
        database browser, a backup) is in the way. So `work` must do no harm when it is done twice."""
        patience = time.monotonic() + SECONDS_FOR_OTHER_PROGRAMS
        while True:
            try:
                with self.write(message) as transaction:
                    work(transaction)
                return
            except LakeLocked:
                if time.monotonic() > patience:
                    raise
                time.sleep(0.5)

    def call(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement of maintenance by itself, under the write lock; its rows."""
        with self._locked(), self._connection.cursor() as cursor:
            try:
                return _run(cursor, statement, parameters).fetchall()
            except duckdb.Error as error:
                raise LakeError(explained(str(error))) from error

    def compact(self, table: Table) -> None:
        """Merge the many small files that batch commits leave into few. Contents and history stay."""
        with self._locked(), self.reading() as cursor:
            _run(
                cursor,
                f"CALL ducklake_merge_adjacent_files('{LAKE}', ?, schema => ?)",
                [table.name, table.schema],
            )
            _run(cursor, "COMMIT")

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Lake:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- inside --------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A session of its own in this lake, with one open transaction that sees one snapshot throughout."""
        with self._connection.cursor() as cursor:
            _run(cursor, "BEGIN")  # first of all: each transaction looks the snapshot up in the catalog anew
            _run(cursor, f"USE {LAKE}")
            _run(cursor, CONTENT_ID_MACRO)
            yield cursor

    def _refuse_lost_catalog(self) -> None:
        """Without this, a new, empty catalog would be made, and maintenance would take all data for leftovers."""
        catalog = self.folder / "lake.sqlite"
        if not catalog.exists() or catalog.stat().st_size == 0:
            raise LakeError(
                f"the lake in {self.folder} has lost its catalog: {catalog.name} is missing or empty. Restore it from "
                "a copy; to begin anew, move the whole folder away"
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._lock.acquire()
        except Timeout as error:
            raise LakeError(
                f"another process has been writing to the lake in {self.folder} for over "
                f"{self._lock.timeout:g} seconds; wait for it to end or stop it"
            ) from error
        try:
            yield
        finally:
            self._lock.release()

    def _attach(self, *, read_only: bool) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect(config=_CONFIG)
        load_extensions(connection, ("ducklake", "sqlite_scanner"), self._extension_folders)
        catalog = _literal(f"ducklake:sqlite:{self.folder / 'lake.sqlite'}")
        # The data path is given each time and wins over the recorded one, so that a lake may be moved.
        options = f"DATA_PATH {_literal(str(self.folder / 'data') + '/')}, OVERRIDE_DATA_PATH true"
        options += ", READ_ONLY" if read_only else ", META_JOURNAL_MODE 'WAL'"
        try:
            connection.execute(f"ATTACH {catalog} AS {LAKE} ({options}, META_BUSY_TIMEOUT 60000)")
            if not read_only and not (self.folder / "lake.json").exists():
                connection.execute(f"CALL {LAKE}.set_option('parquet_compression', 'zstd')")
        except duckdb.Error as error:
            connection.close()
            raise LakeError(explained(f"the lake in {self.folder} cannot be opened: {error}")) from error
        return connection

    def _columns_there(self, table: Table) -> set[str]:
        rows = self.query(
            "SELECT column_name AS name FROM duckdb_columns() "
            "WHERE database_name = ? AND schema_name = ? AND table_name = ?",
            [LAKE, table.schema, table.name],
        )
        return set(rows["name"].to_pylist())

    def _is_complete(self, table: Table) -> bool:
        if table in self._complete:
            return True
        complete = {column.name for column in table.all_columns} <= self._columns_there(table)
        if complete:
            self._complete.add(table)
        return complete

    def _create(self, transaction: Transaction, table: Table) -> None:
        there = self._columns_there(table)
        columns = {c.name: f"{quoted(c.name)} {sql_type(c.type)}" for c in table.all_columns}
        transaction.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(LAKE)}.{quoted(table.schema)}")
        if not there:
            transaction.execute(f"CREATE TABLE IF NOT EXISTS {table.qualified} ({', '.join(columns.values())})")
            transaction.execute(f"COMMENT ON TABLE {table.qualified} IS {_literal(table.description)}")
            return
        for name, definition in columns.items():
            if name not in there:
                transaction.execute(f"ALTER TABLE {table.qualified} ADD COLUMN {definition}")


def checked_rows(table: Table, rows: pa.Table) -> pa.Table:
    """The rows with exactly the table's columns, in its order and types.

    LakeError names columns that are missing or unknown, values of the wrong type, missing values where there
    must be some, and keys that occur twice.
    """
    schema = table.arrow_schema
    missing = [name for name in schema.names if name not in rows.column_names]
    unknown = [name for name in rows.column_names if name not in schema.names]
    if missing or unknown:
        said = [f"{what} {', '.join(names)}" for what, names in (("lack", missing), ("have unknown", unknown)) if names]
        raise LakeError(f"rows for table {table.label} {' and '.join(said)}")
    arrays = []
    for field in schema:
        column = rows[field.name]
        try:
            array = column if column.type == field.type else column.cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise LakeError(f"table {table.label}, column {field.name}: {error}") from error
        if not field.nullable and array.null_count:
            raise LakeError(f"table {table.label}, column {field.name}: {array.null_count} rows have no value")
        arrays.append(array)
    checked = pa.Table.from_arrays(arrays, names=schema.names)
    if pc.count_distinct(checked[table.key]).as_py() < checked.num_rows:
        counts = pc.value_counts(checked[table.key])
        twice = [entry["values"].as_py() for entry in counts if entry["counts"].as_py() > 1][:10]
        raise LakeError(f"table {table.label}: {table.key} occurs more than once: {', '.join(twice)}")
    return checked


def sql_type(type_: pa.DataType) -> str:
    """DuckDB's name for an Arrow type that tables use."""
    if pa.types.is_struct(type_):
        fields = (type_.field(index) for index in range(type_.num_fields))
        return f"STRUCT({', '.join(f'{quoted(field.name)} {sql_type(field.type)}' for field in fields)})"
    if pa.types.is_list(type_):
        return f"{sql_type(type_.value_type)}[]"
    names = {
        pa.string(): "VARCHAR",
        pa.bool_(): "BOOLEAN",
        pa.int64(): "BIGINT",
        pa.float64(): "DOUBLE",
        pa.timestamp("us", tz="UTC"): "TIMESTAMPTZ",
    }
    if type_ not in names:
        raise LakeError(f"tables of the lake cannot hold values of type {type_}")
    return names[type_]


def _table_functions(tree: Any) -> Iterator[str]:
    """Names of the functions that a parsed statement reads from, however deep."""
    if isinstance(tree, list):
        for branch in tree:
            yield from _table_functions(branch)
    elif isinstance(tree, dict):
        if tree.get("type") == "TABLE_FUNCTION":
            yield str(tree["function"].get("function_name", "?")).lower()
        for branch in tree.values():
            yield from _table_functions(branch)


def _literal(text: str) -> str:
    """An SQL string, for the few statements that take no parameters."""
    return "'" + text.replace("'", "''") + "'"


def _run(cursor: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[Any] = ()) -> duckdb.DuckDBPyConnection:
    try:
        return cursor.execute(sql, list(parameters)) if parameters else cursor.execute(sql)
    except duckdb.Error as error:
        kind = LakeLocked if is_locked(str(error)) else LakeError
        raise kind(explained(str(error))) from error


def _arrow(result: duckdb.DuckDBPyConnection) -> pa.Table:
    try:
        return result.to_arrow_table()
    except duckdb.Error as error:
        raise LakeError(explained(str(error))) from error


@contextmanager
def _registered(cursor: duckdb.DuckDBPyConnection, **relations: pa.Table) -> Iterator[None]:
    for name, rows in relations.items():
        cursor.register(name, rows)
    try:
        yield
    finally:
        for name in relations:
            cursor.unregister(name)


def _roll_back(cursor: duckdb.DuckDBPyConnection) -> None:
    try:
        cursor.execute("ROLLBACK")
    except duckdb.Error:
        # No transaction is open any more: BEGIN or COMMIT itself failed, and there is nothing to undo.
        return
