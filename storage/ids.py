"""Content ids: the same name for the same content on every machine.

Belongs here: how an id or seed is made from the values it stands for, and the hash of a file. What goes into the id of
a given row is decided by whoever makes the row. The same function exists in SQL as the macro ``content_id([...])`` that
`storage.lake` defines from `CONTENT_ID_MACRO`; tests hold the two together.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

ID_LENGTH = 24

# `strlen` counts bytes, `length` would count characters. A missing value is written "-:", which no string
# gives, so that (a, NULL) and (a) and (a, "") differ.
CONTENT_ID_MACRO = f"""
CREATE OR REPLACE TEMP MACRO content_id(parts) AS
    left(sha256(array_to_string(list_transform(
        parts, lambda part: coalesce(strlen(part)::VARCHAR || ':' || part, '-:')), '')), {ID_LENGTH})
"""


def content_id(*parts: str | None) -> str:
    """24 hex characters of the sha256 of the parts, each prefixed by its length in bytes.

    The prefix keeps ("ab", "c") and ("a", "bc") apart. None stands for a missing value and differs from "".
    Raises TypeError for a part that is not text and UnicodeEncodeError for text that has no UTF-8 form.
    """
    digest = hashlib.sha256()
    for part in parts:
        if part is None:
            digest.update(b"-:")
            continue
        if not isinstance(part, str):
            raise TypeError(f"content_id takes text, not {type(part).__name__}: {part!r}")
        encoded = part.encode("utf-8")
        digest.update(str(len(encoded)).encode() + b":" + encoded)
    return digest.hexdigest()[:ID_LENGTH]


def seed_of(*parts: str | None) -> int:
    """A seed of 48 bits for a draw that the parts name, the same on every machine."""
    return int(content_id(*parts)[:12], 16)


def sha256_of(file: Path) -> str:
    """The hash of a file's bytes, 64 hex characters. Raises OSError."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
