"""Sessions in a lake: DuckDB's cursors with the lake in use, opened once and used again, and statements in them.

Belongs here: what one statement needs, whatever it says: its parameters, Arrow tables that it may name, its errors as
the lake's own. Does not belong here: which statements there are (lake.py) or where the lake lies (lake_place.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa

from storage.faults import LakeError, LakeLocked, LakeUnreachable, explained, is_locked, is_unreachable
from storage.ids import CONTENT_ID_MACRO
from storage.lake_place import patiently
from storage.object_store import scrubbed
from storage.tables import LAKE


class Sessions:
    """The sessions of one connection. May be used by several threads at once.

    `patience`: seconds for which a server that is away is waited for when a transaction begins; 0 where there is none.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, patience: float) -> None:
        self.connection = connection
        self._patience = patience
        self._idle: list[duckdb.DuckDBPyConnection] = []

    @contextmanager
    def transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A session with one open transaction that sees one snapshot throughout. Nobody else has it meanwhile; what is
        made in it and not committed, temporary tables among it, is gone at the end."""
        cursor = self._idle.pop() if self._idle else None
        cursor, prepared = cursor or self.connection.cursor(), cursor is not None
        try:
            patiently(lambda: self._begin(cursor, prepared=prepared), self._patience)
            yield cursor
        except BaseException:
            cursor.close()
            raise
        roll_back(cursor)
        self._idle.append(cursor)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()
        self.connection.close()

    def _begin(self, cursor: duckdb.DuckDBPyConnection, *, prepared: bool) -> None:
        if not prepared:
            run(cursor, f"USE {LAKE}")
            run(cursor, CONTENT_ID_MACRO)
        run(cursor, "BEGIN")
        try:
            if self._patience:  # now is when a server that is away can be waited for
                run(cursor, f"SELECT id FROM {LAKE}.current_snapshot()").fetchall()  # noqa: S608 (a constant)
        except LakeError:
            roll_back(cursor)
            raise


def run(cursor: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[Any] = ()) -> duckdb.DuckDBPyConnection:
    """One statement. Raises LakeError."""
    try:
        return cursor.execute(sql, list(parameters)) if parameters else cursor.execute(sql)
    except duckdb.Error as error:
        raise lake_error(error) from error


def arrow(result: duckdb.DuckDBPyConnection) -> pa.Table:
    """What a statement found. Raises LakeError."""
    try:
        return result.to_arrow_table()
    except duckdb.Error as error:
        raise lake_error(error) from error


def lake_error(error: duckdb.Error) -> LakeError:
    """What DuckDB said, of the kind that tells whether trying again helps, without secrets."""
    said = scrubbed(str(error))
    kind = LakeLocked if is_locked(said) else LakeUnreachable if is_unreachable(said) else LakeError
    return kind(explained(said))


@contextmanager
def registered(cursor: duckdb.DuckDBPyConnection, **relations: pa.Table) -> Iterator[None]:
    """A context in which statements may name these tables."""
    for name, rows in relations.items():
        cursor.register(name, rows)
    try:
        yield
    finally:
        for name in relations:
            cursor.unregister(name)


def roll_back(cursor: duckdb.DuckDBPyConnection) -> None:
    """Undo what is not committed, if a transaction is open."""
    try:
        cursor.execute("ROLLBACK")
    except duckdb.Error:
        # No transaction is open any more: BEGIN or COMMIT itself failed, and there is nothing to undo.
        return
