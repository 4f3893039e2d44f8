"""The lake: tables as Parquet files with an SQL catalog (DuckLake), read and written by DuckDB.

With `storage.lake_place` (where catalog and files lie, and who may write) and `storage.lake_sessions` (statements) the
one module that knows it is DuckLake.
Here: opening, reading, writing in transactions, time travel, export, maintenance. Which tables there are is in
`storage.tables`; what rows to compute in `storage.refresh`.

Every write transaction takes the lake's lock, which is free again when its holder dies; readers see the last committed
snapshot and never wait. A lake shared by many machines lives through a restart of its catalog's server: what was begun
waits for it, and a commit whose answer was lost is looked up.
"""

# ruff: noqa: S608 (SQL names come from Table, which takes plain identifiers only; values are parameters)

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from storage.extensions import ExtensionMissing
from storage.faults import LakeError, LakeLocked, LakeUnreachable
from storage.ids import CONTENT_ID_MACRO
from storage.lake_place import LOCK_TIMEOUT, FolderPlace, LakePlace, literal, patiently
from storage.lake_sessions import Sessions, arrow, registered, roll_back, run
from storage.retention_log import when_expired
from storage.tables import LAKE, Table, quoted

__all__ = ["ExtensionMissing", "Lake", "LakeError", "LakeUnreachable", "ReadOnlyConnection", "Transaction"]

AUTHOR = "vpo"
COMMIT = "commit"
"""Key of each commit's own name in its message, by which a commit whose answer was lost is found."""
SECONDS_FOR_OTHER_PROGRAMS = 60.0
CATALOG = f"__ducklake_metadata_{LAKE}.main"
"""DuckLake's own tables, for questions that its functions answer only by reading the whole history."""
NOTES = f"{CATALOG}.vpo_notes"
"""Beside them: see storage/notes.py."""


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
        with registered(self._cursor, incoming=checked):
            run(self._cursor, f"INSERT INTO {table.qualified} BY NAME SELECT * FROM incoming")

    def insert(self, table: Table, rows: pa.Table) -> int:
        """Write the rows whose key is not there yet; the others stay as they are. How many were written."""
        checked = checked_rows(table, rows)
        if checked.num_rows == 0:
            return 0
        key = quoted(table.key)
        with registered(self._cursor, incoming=checked):
            return self.execute(
                f"INSERT INTO {table.qualified} BY NAME SELECT * FROM incoming ANTI JOIN "
                f"(SELECT {key} FROM {table.qualified}) USING ({key})"
            )

    def delete(self, table: Table, keys: Collection[str] | pa.Array | pa.ChunkedArray) -> int:
        """Remove rows by key; keys that are not there are no error. How many were removed."""
        gone = keys if isinstance(keys, pa.Array | pa.ChunkedArray) else pa.array(list(keys), pa.string())
        if len(gone) == 0:
            return 0
        with registered(self._cursor, gone=pa.table({"key": gone})):
            return self.execute(f"DELETE FROM {table.qualified} WHERE {quoted(table.key)} IN (SELECT key FROM gone)")

    def execute(self, sql: str, parameters: Sequence[Any] = (), **relations: pa.Table) -> int:
        """Any changing statement; `relations` are Arrow tables it may name. How many rows it changed."""
        with registered(self._cursor, **relations):
            changed = run(self._cursor, sql, parameters).fetchone()
        return int(changed[0]) if changed else 0

    def query(self, sql: str, parameters: Sequence[Any] = (), **relations: pa.Table) -> pa.Table:
        """Read inside the transaction: its own changes are visible."""
        with registered(self._cursor, **relations):
            return arrow(run(self._cursor, sql, parameters))

    def snapshot(self) -> int:
        """Id of the snapshot that is seen here, apart from the transaction's own changes."""
        return int(self.query(f"SELECT id FROM {LAKE}.current_snapshot()")["id"][0].as_py())

    def exists(self, table: Table) -> bool:
        """Whether the table has been made."""
        return bool(self.columns(table.qualified))

    def columns(self, name: str) -> set[str]:
        """Names of the columns of a table (qualified name); none if it has not been made."""
        database, schema, table = (part.strip('"') for part in name.split("."))
        rows = self.query(
            "SELECT column_name AS name FROM duckdb_columns() "
            "WHERE database_name = ? AND schema_name = ? AND table_name = ?",
            [database, schema, table],
        )
        return set(rows["name"].to_pylist())


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
        return arrow(run(self._connection, sql, parameters))

    def _check(self, sql: str) -> None:
        try:
            statements = self._connection.extract_statements(sql)
        except duckdb.Error as error:
            raise LakeError(str(error)) from error
        if len(statements) != 1:
            raise LakeError(f"one SQL statement at a time, please: this has {len(statements)}")
        parsed = run(self._connection, "SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchone()
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
    """The lake in a place, made if it is not there. May be used by several threads and processes at once.

    `place`: a folder, or where a lake that several machines share lies (`SharedPlace`). `extension_folders` are
    searched for DuckDB extension files before anything else. A writer waits up to `lock_timeout` seconds for others to
    finish. Raises ExtensionMissing or LakeError.
    """

    def __init__(
        self, place: Path | LakePlace, *, extension_folders: Sequence[Path] = (), lock_timeout: float = LOCK_TIMEOUT
    ) -> None:
        self.place: LakePlace = FolderPlace(place, lock_timeout) if isinstance(place, Path) else place
        self.folder = self.place.folder
        self._extension_folders = tuple(extension_folders)
        self._writing = threading.local()
        # Tables and columns are never dropped, so that what has been seen once need not be looked up again.
        self._seen: dict[tuple[str, str], set[str]] = {}
        connection = self.place.attach(self._extension_folders, read_only=False)
        self._readers = Sessions(connection, self.place.patience)
        self._writers: Sessions | None = None
        self._make_notes()

    # ---- reading -------------------------------------------------------------------------------------------

    def query(self, sql: str, parameters: Sequence[Any] = (), **relations: pa.Table) -> pa.Table:
        """Run a SELECT. Tables go by name (``drafts``, ``shapes.videos``); `relations` are Arrow tables the
        SQL may name besides. Values belong into `parameters` (``?``), never into the text."""

        def ask() -> pa.Table:
            with self.reading() as cursor, registered(cursor, **relations):
                return arrow(run(cursor, sql, parameters))

        return patiently(ask, self.place.patience)

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
        condition = f" WHERE {where}" if where else ""

        def ask() -> pa.Table:
            with self.reading() as cursor:
                there = {name for name, *_ in run(cursor, f"SELECT * FROM {source} LIMIT 0").description or []}
                names = ", ".join(quoted(f.name) if f.name in there else f"NULL AS {quoted(f.name)}" for f in wanted)
                return arrow(run(cursor, f"SELECT {names} FROM {source}{condition}", parameters))

        rows = patiently(ask, self.place.patience)
        return rows.cast(pa.schema([field.with_nullable(True) for field in wanted]))

    def exists(self, table: Table) -> bool:
        """Whether the table has been made."""
        place = table.schema, table.name
        return place in self._seen or place in self._columns_there()

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
        rows = self.query(f"SELECT 1 AS one FROM {CATALOG}.ducklake_snapshot WHERE snapshot_id = ?", [snapshot])
        return bool(rows.num_rows)

    def require_snapshot(self, snapshot: int) -> None:
        """LakeError that says what became of a snapshot that is not there (any more)."""
        if self.has_snapshot(snapshot):
            return
        kept = self.query(
            "SELECT min(snapshot_id) AS first, max(snapshot_id) AS last, count(*) AS n "
            f"FROM {CATALOG}.ducklake_snapshot"
        ).to_pylist()[0]
        when = when_expired(self.folder, snapshot)
        if when is not None:
            fate = f"was taken by retention on {when:%Y-%m-%d at %H:%M} UTC"
        elif snapshot > kept["last"]:
            fate = "has not been made yet"
        else:
            fate = "is gone, by no maintenance that this lake knows of"
        raise LakeError(
            f"snapshot {snapshot} of the lake in {self.place} {fate}; {kept['n']} snapshots from {kept['first']} to "
            f"{kept['last']} are left"
        )

    def size(self) -> tuple[int, int]:
        """Number and bytes of the data files that the catalog knows of, old snapshots' included."""
        rows = self.query(
            "SELECT count(*) AS files, coalesce(sum(bytes), 0)::BIGINT AS bytes FROM (SELECT file_size_bytes AS bytes "
            f"FROM {CATALOG}.ducklake_data_file UNION ALL SELECT file_size_bytes FROM {CATALOG}.ducklake_delete_file)"
        ).to_pylist()[0]
        return rows["files"], rows["bytes"]

    def commits(self, limit: int = 20) -> list[dict[str, Any]]:
        """The last commits, newest first: snapshot, time, and the message that `write` was given."""
        rows = self.query(
            "SELECT snapshot_id AS snapshot, snapshot_time AS time, commit_extra_info AS message "
            f"FROM {LAKE}.snapshots() ORDER BY snapshot_id DESC LIMIT ?",
            [limit],
        ).to_pylist()
        return [{**row, "message": _message(row["message"])} for row in rows]

    def commits_since(
        self, snapshot: int, reader: Transaction | Lake | None = None
    ) -> list[tuple[int, dict[str, Any]]]:
        """Snapshot and message of every later commit, the oldest first. Cheap however long the history is.

        `reader`: a transaction, to see what is committed as of its beginning.
        """
        rows = (reader or self).query(
            f"SELECT snapshot_id AS snapshot, commit_extra_info AS message FROM {CATALOG}.ducklake_snapshot_changes "
            "WHERE snapshot_id > ? ORDER BY snapshot_id",
            [snapshot],
        )
        return [(row["snapshot"], _message(row["message"])) for row in rows.to_pylist()]

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
        connection = self.place.attach(self._extension_folders, read_only=True)
        connection.execute(f"USE {LAKE}")
        connection.execute(CONTENT_ID_MACRO)
        connection.execute(f"SET allowed_directories = [{literal(self.place.data)}]")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        return ReadOnlyConnection(connection)

    # ---- writing -------------------------------------------------------------------------------------------

    def create(self, *tables: Table) -> None:
        """Make tables that are not there and add columns that are missing; write nothing if all is well."""
        if _complete(tables, self._seen) or _complete(tables, self._columns_there()):
            return
        with self.write({"asset": tables[0].label, "text": "create tables"}) as transaction:
            there = self._columns_there()  # once more: others may have made them while we waited for our turn
            for table in tables:
                self._create(transaction, table, there.get((table.schema, table.name), set()))

    @contextmanager
    def write(self, message: Mapping[str, Any]) -> Iterator[Transaction]:
        """One transaction: everything done in the ``with`` block is committed at its end, or nothing if it
        raises. `message` (say run_id, asset, text; JSON values) is kept with the commit, see `commits`."""
        if getattr(self._writing, "now", False):
            raise LakeError("a write transaction is already open in this thread: use that one")
        commit = uuid.uuid4().hex
        extra = json.dumps({**message, COMMIT: commit}, default=str, ensure_ascii=False)
        text = " ".join(str(message[name]) for name in ("asset", "text") if message.get(name)) or "write"
        with self._changing() as cursor:
            self._writing.now = True
            try:
                yield Transaction(cursor)
                run(cursor, f"CALL {LAKE}.set_commit_message(?, ?, extra_info => ?)", [AUTHOR, text, extra])
                self.place.require_lock()
                self._finish(cursor, commit)
            except BaseException:
                roll_back(cursor)
                raise
            finally:
                self._writing.now = False

    def _finish(self, cursor: duckdb.DuckDBPyConnection, commit: str) -> None:
        """COMMIT. If the server was cut off before it answered, the history says whether it had done it."""
        try:
            self._commit(cursor)
        except LakeUnreachable:
            found = self.query(
                f"SELECT 1 AS one FROM {CATALOG}.ducklake_snapshot_changes WHERE contains(commit_extra_info, ?)",
                [commit],
            )
            if not found.num_rows:
                raise

    def commit(self, message: Mapping[str, Any], work: Callable[[Transaction], None]) -> None:
        """One transaction, as `write`; it is done again for a while if a program that does not keep to our lock (a
        database browser, a backup) is in the way, or if the catalog's server is away. So `work` must do no harm when it
        is done twice."""
        patience = time.monotonic() + max(SECONDS_FOR_OTHER_PROGRAMS, self.place.patience)
        while True:
            try:
                with self.write(message) as transaction:
                    work(transaction)
                return
            except (LakeLocked, LakeUnreachable):
                if time.monotonic() > patience:
                    raise
                time.sleep(0.5)

    def call(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement of maintenance by itself, under the write lock; its rows."""
        with self._changing() as cursor:
            rows = run(cursor, statement, parameters).fetchall()
            self._commit(cursor)
            return rows

    @contextmanager
    def beside(self) -> Iterator[Transaction]:
        """One transaction that leaves the rows of all tables as they are: maintenance, or what the catalog's database
        has beside DuckLake's own tables. It comes with no message."""
        with self._changing() as cursor:
            yield Transaction(cursor)
            self._commit(cursor)

    def compact(self, table: Table) -> None:
        """Merge the many small files that batch commits leave into few. Contents and history stay."""
        statement = f"CALL ducklake_merge_adjacent_files('{LAKE}', ?, schema => ?)"
        patiently(lambda: self.call(statement, [table.name, table.schema]), self.place.patience)

    def close(self) -> None:
        if self._writers is not None and self._writers is not self._readers:
            self._writers.close()
        self._readers.close()

    def __enter__(self) -> Lake:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- inside --------------------------------------------------------------------------------------------

    def reading(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """A session in this lake, with one open transaction that sees one snapshot throughout. Nobody else has it
        meanwhile; what is made in it and not committed, temporary tables among it, is gone at the end."""
        return self._readers.transaction()

    @contextmanager
    def _changing(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The same, under the lock of writers."""
        with self._locked():
            if self._writers is None:
                own = self.place.attach_writer(self._extension_folders)
                self._writers = Sessions(own, self.place.patience) if own else self._readers
            with self._writers.transaction() as cursor:
                yield cursor

    def _commit(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """COMMIT, so that one whose answer is lost keeps its files, see `LakePlace.files_kept`."""
        assert self._writers is not None
        with self.place.files_kept(self._writers.connection):
            run(cursor, "COMMIT")

    def _make_notes(self) -> None:
        try:
            patiently(lambda: run(self._readers.connection, f"SELECT 1 FROM {NOTES} LIMIT 0"), self.place.patience)
        except (LakeLocked, LakeUnreachable):
            raise
        except LakeError:  # there is no such table yet
            with self.beside() as transaction:
                transaction.execute(
                    f"CREATE TABLE IF NOT EXISTS {NOTES} (kind VARCHAR, about VARCHAR, note VARCHAR, "
                    "PRIMARY KEY (kind, about))"
                )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self.place.locked():
            yield

    def locked(self, name: str, timeout: float) -> AbstractContextManager[None]:
        """A context in which no other process, on no machine, is in one of that name of this lake. LakeError after
        `timeout` seconds. It does not keep writers waiting."""
        return self.place.locked(name, timeout=timeout)

    def _columns_there(self) -> dict[tuple[str, str], set[str]]:
        """Columns of every table, by schema and name."""
        rows = self.query(
            "SELECT schema_name AS schema, table_name AS name, list(column_name) AS columns FROM duckdb_columns() "
            "WHERE database_name = ? GROUP BY ALL",
            [LAKE],
        ).to_pylist()
        self._seen = {(row["schema"], row["name"]): set(row["columns"]) for row in rows}
        return self._seen

    def _create(self, transaction: Transaction, table: Table, there: set[str]) -> None:
        columns = {c.name: f"{quoted(c.name)} {sql_type(c.type)}" for c in table.all_columns}
        transaction.execute(f"CREATE SCHEMA IF NOT EXISTS {quoted(LAKE)}.{quoted(table.schema)}")
        if not there:
            transaction.execute(f"CREATE TABLE IF NOT EXISTS {table.qualified} ({', '.join(columns.values())})")
            transaction.execute(f"COMMENT ON TABLE {table.qualified} IS {literal(table.description)}")
            return
        for name, definition in columns.items():
            if name not in there:
                transaction.execute(f"ALTER TABLE {table.qualified} ADD COLUMN {definition}")


def _complete(tables: Collection[Table], there: Mapping[tuple[str, str], set[str]]) -> bool:
    """Whether all tables have all their columns."""
    return all(
        {column.name for column in table.all_columns} <= there.get((table.schema, table.name), set())
        for table in tables
    )


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


def _message(extra: str | None) -> dict[str, Any]:
    """The message that `write` was given."""
    message: dict[str, Any] = json.loads(extra or "{}")
    message.pop(COMMIT, None)
    return message


def parsed_nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every node of a statement that DuckDB parsed to JSON, however deep."""
    if isinstance(tree, list):
        for branch in tree:
            yield from parsed_nodes(branch)
    elif isinstance(tree, dict):
        yield tree
        for branch in tree.values():
            yield from parsed_nodes(branch)


def _table_functions(tree: Any) -> Iterator[str]:
    """Names of the functions that a parsed statement reads from."""
    for node in parsed_nodes(tree):
        if node.get("type") == "TABLE_FUNCTION":
            yield str(node["function"].get("function_name", "?")).lower()
