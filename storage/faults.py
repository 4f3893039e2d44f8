"""What DuckDB, SQLite and Postgres say when a disk, a file, a lock or a server fails, turned into what a user can do
about it.

Here: the lake's errors, and recognizing such messages. Raising them is for whoever met them.
"""

from __future__ import annotations

import re

_FULL = ("no space left on device", "disk i/o error", "database or disk is full")
_LOCKED = ("database is locked", "database table is locked")
_BROKEN_CATALOG = ("database disk image is malformed", "file is not a database")
_PARQUET = re.compile(r"['\"]([^'\"]*/data/([^'\"/]+)/([^'\"/]+)/[^'\"]*\.parquet)['\"]")
_AWAY = (
    *("connection refused", "server closed the connection", "terminating connection", "connection to server was lost"),
    *("the database system is", "no connection to the server", "could not receive data", "could not send data"),
    *("connection already closed", "ssl connection has been closed", "unable to connect to postgres"),
    *("connection timed out", "timeout expired", "no route to host", "could not translate host name"),
    *('failed to execute query "commit', 'failed to execute query "rollback', 'failed to execute query "begin'),
    *("too many clients", "connection reset by peer", "network is unreachable", "lost its lock"),
)
_REFUSED = ("password authentication failed", "no password supplied", "does not exist", "no pg_hba.conf entry")
_STORE = re.compile(r"http error|http (get|put|post|head|delete)", re.IGNORECASE)


class LakeError(Exception):
    """Something is wrong with a query, with rows to be written or with the lake itself; says what."""


class LakeLocked(LakeError):
    """Another program, none of ours, writes to the catalog right now."""


class LakeUnreachable(LakeError):
    """The server of a shared lake's catalog does not answer now; it may do so later. Nothing was committed."""


def is_unreachable(message: str) -> bool:
    """Whether a server is away, so that trying again may help."""
    lowered = message.lower()
    return any(sign in lowered for sign in _AWAY) and not any(sign in lowered for sign in (*_REFUSED, *_FULL, *_LOCKED))


def is_locked(message: str) -> bool:
    """Whether another program holds the catalog."""
    return any(sign in message.lower() for sign in _LOCKED)


def explained(message: str) -> str:
    """The message, with what to do where that is known."""
    lowered = message.lower()
    if any(sign in lowered for sign in _FULL):
        return f"{message}\nThe disk seems to be full: free some space and run it again. What is committed is kept."
    if is_locked(message):
        return (
            f"{message}\nAnother program holds the lake's catalog (lake.sqlite): close it, or wait for it, and run it "
            "again. What is committed is kept."
        )
    if any(sign in lowered for sign in _BROKEN_CATALOG):
        return f"{message}\nThe lake's catalog (lake.sqlite) is damaged: restore the lake's folder from a copy."
    if is_unreachable(message):
        return (
            f"{message}\nThe Postgres server that holds the lake's catalog does not answer, or was restarted: see that "
            "it runs, and run it again. What is committed is kept."
        )
    if any(sign in lowered for sign in _REFUSED) and ("postgres" in lowered or "server at" in lowered):
        return (
            f"{message}\nPostgres lets nobody in by that address: see user, database and host in the setting "
            "lake.catalog, and the password in the environment variable PGPASSWORD."
        )
    if _STORE.search(message):
        return (
            f"{message}\nThe object store that holds the lake's data did not do what it was asked to, though it was "
            "asked several times: see that it runs and that the keys in the environment (AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY) may read and write there, and run it again. What is committed is kept."
        )
    found = _PARQUET.search(message)
    if found and "could not write" not in lowered:
        file, schema, table = found.groups()
        label = table if schema == "main" else f"{schema}.{table}"
        return (
            f"{message}\nThe data file {file} of table {label} is damaged or gone: restore it from a copy. Without "
            "one, the rows in it are lost; the other tables are whole."
        )
    return message
