"""What DuckDB and SQLite say when a disk, a file or a lock fails, turned into what a user can do about it.

Here: recognizing such messages. Raising them is for whoever met them.
"""

from __future__ import annotations

import re

_FULL = ("no space left on device", "disk i/o error", "database or disk is full")
_LOCKED = ("database is locked", "database table is locked")
_BROKEN_CATALOG = ("database disk image is malformed", "file is not a database")
_PARQUET = re.compile(r"['\"]([^'\"]*/data/([^'\"/]+)/([^'\"/]+)/[^'\"]*\.parquet)['\"]")


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
    found = _PARQUET.search(message)
    if found and "could not write" not in lowered:
        file, schema, table = found.groups()
        label = table if schema == "main" else f"{schema}.{table}"
        return (
            f"{message}\nThe data file {file} of table {label} is damaged or gone: restore it from a copy. Without "
            "one, the rows in it are lost; the other tables are whole."
        )
    return message
