"""Fingerprints of models on disk, so that a recipe names the weights and not only a path.

Belongs here: hashing a folder. Does not belong here: names of models on a hub, which have revisions.
"""

import hashlib
from functools import cache
from pathlib import Path

HASHED_WHOLE = 200 * 1024**2  # folders up to this many bytes are read; larger ones are known by sizes and times


@cache
def folder_fingerprint(folder: Path) -> str:
    """24 hex characters that change with the folder's files. Read once a process."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    read_whole = sum(file.stat().st_size for file in files) <= HASHED_WHOLE
    digest = hashlib.sha256()
    for file in files:
        state = file.stat()
        content = file.read_bytes() if read_whole else f"{state.st_size} {state.st_mtime_ns}".encode()
        digest.update(f"{file.relative_to(folder)}\0".encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()[:24]
