"""Files in an object store, by name: what the stores of videos and checkpoints keep there.

Belongs here: putting, fetching, listing and removing, with one clear error. Does not belong here: what the files are
and when they are needed (videos.py, checkpoints.py), and how the store is reached (object_store.py).

A local copy is a cache: it may be removed at any time, and what is in the object store counts.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from storage.object_store import (
    ObjectLocation,
    ObjectStoreAccess,
    ObjectStoreError,
    explained_store_error,
    open_store,
)

if TYPE_CHECKING:
    from obstore.store import S3Store

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class RemoteFile:
    """A file in the store. size: bytes. modified: when it was last put there."""

    name: str
    size: int
    modified: datetime.datetime

    def is_older_than(self, seconds: float) -> bool:
        return (datetime.datetime.now(datetime.UTC) - self.modified).total_seconds() >= seconds


class RemoteFiles:
    """The files below `url`, ``s3://bucket/prefix``. A store that is away is asked again for a while.

    ValueError for another address. Every method raises ObjectStoreError if the store does not do its part.
    """

    def __init__(self, url: str, access: ObjectStoreAccess) -> None:
        self.location = ObjectLocation.parse(url)
        self._access = access

    def __str__(self) -> str:
        return str(self.location)

    def __reduce__(self) -> tuple[type[RemoteFiles], tuple[str, ObjectStoreAccess]]:
        """To another process it goes as its address; keys stay in the environment."""
        return type(self), (self.location.url, self._access)

    def put(self, name: str, content: bytes | Path) -> None:
        """Store a file; one of that name is replaced, at once or not at all."""
        self._do(lambda: self._store.put(name, content))

    def put_new(self, name: str, content: bytes) -> bool:
        """Store a file unless there is one of that name. Whether it was stored."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def put() -> bool:
            try:
                self._store.put(name, content, mode="create")
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

        return self._do(put)

    def read(self, name: str) -> bytes:
        """A file's content. FileNotFoundError if there is none."""
        return self._do(lambda: bytes(self._store.get(name).bytes()))

    def fetch(self, name: str, file: Path) -> None:
        """Copy a file here, beside and then renamed. FileNotFoundError if there is none."""
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f"{file.name}.{os.getpid()}.unfinished")
        try:

            def copy() -> None:
                with unfinished.open("wb") as stream:
                    for chunk in self._store.get(name).stream():
                        stream.write(chunk)

            self._do(copy)
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)

    def look(self, name: str) -> RemoteFile | None:
        """Size and age of a file; None if there is none."""
        try:
            found = self._do(lambda: self._store.head(name))
        except FileNotFoundError:
            return None
        return RemoteFile(name, found["size"], found["last_modified"])

    def list(self, folder: str | None = None) -> Iterator[RemoteFile]:
        """All files, or those below a folder: a request for each thousand of them."""
        pages = iter(self._store.list(folder))
        while page := self._do(lambda: next(pages, None)):
            yield from (RemoteFile(found["path"], found["size"], found["last_modified"]) for found in page)

    def delete(self, name: str) -> None:
        """Remove a file; one that is not there is no error."""
        self._do(lambda: self._store.delete(name))

    @cached_property
    def _store(self) -> S3Store:
        return open_store(self.location, self._access)

    def _do(self, action: Callable[[], _Result]) -> _Result:
        try:
            return action()
        except (FileNotFoundError, ObjectStoreError):
            raise
        except OSError as error:
            if error.filename is not None:  # a file of this machine, such as one on a full disk
                raise
            raise ObjectStoreError(explained_store_error(self.location, error)) from None
        except Exception as error:  # obstore's own; they may hold the request, so that they are not chained
            raise ObjectStoreError(explained_store_error(self.location, error)) from None
