"""What runs in a Ray worker: the batch function, unpacked once, and the answers to who is asking.

Belongs here: the actor, and what driver and actor say to each other. Ray is not imported, so that this can be tried
without it. Does not belong here: starting actors and handing out batches (ray_compute.py).
"""

import hashlib
import os
import pickle
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow as pa

from storage.refresh import BatchFunction, BatchResult, StopRefresh

CHECKOUT = Path(__file__).parent.parent
PACKAGES = ("ml", "resources", "storage", "vpo_assets")


@dataclass(frozen=True)
class Probe:
    """What a worker is asked before it gets work: does it see this file, with this text in it?"""

    file: Path
    text: str


@dataclass(frozen=True)
class WorkerReport:
    """What it answers. `fault`: why it cannot load the batch function, `store`: why the store is not the driver's."""

    host: str
    pid: int
    code: str
    fault: str | None
    store: str | None


@dataclass(frozen=True)
class Answer:
    """A batch's result, or the exception that the function raised: as itself, and not as Ray would wrap it."""

    result: BatchResult | None
    error: Exception | None = None


class Worker:
    """Holds one batch function, and with it the models that the function loads when it is first called."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed
        self._function: BatchFunction | None = None

    def report(self, probe: Probe) -> WorkerReport:
        """Who and where it is, and whether it can work."""
        fault = None
        try:
            self._unpack()
        except Exception as error:
            fault = described(error)
        return WorkerReport(socket.gethostname(), os.getpid(), project_code(), fault, store_fault(probe))

    def work(self, batch: pa.Table) -> Answer:
        """Apply the function."""
        try:
            return Answer(self._unpack()(batch))
        except Exception as error:
            return Answer(None, that_travels(error))

    def _unpack(self) -> BatchFunction:
        if self._function is None:
            self._function = pickle.loads(self._packed)  # noqa: S301 (packed by the driver, brought by its cluster)
        return self._function


def seen_from_here(probe: Probe) -> WorkerReport:
    """What a node says of itself that no work was given to."""
    return WorkerReport(socket.gethostname(), os.getpid(), project_code(), None, store_fault(probe))


def that_travels(error: Exception) -> Exception:
    """The exception itself, where it can be packed and unpacked; else one of a plain class that says the same."""
    try:
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 (packed in this line)
    except Exception:
        copy = None
    if type(copy) is type(error) and str(copy) == str(error):
        return error
    return StopRefresh(str(error)) if isinstance(error, StopRefresh) else RuntimeError(described(error))


def described(error: BaseException) -> str:
    """The class and the message of an exception."""
    return f"{type(error).__name__}: {error}"


@cache
def project_code() -> str:
    """24 hex characters that change with the project's source: rows name the code that made them."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for file in sorted((CHECKOUT / package).rglob("*.py")):
            digest.update(f"{file.relative_to(CHECKOUT)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:24]


def store_fault(probe: Probe) -> str | None:
    """Why the folder of a probe is not the one that the driver put it into; None if it is."""
    try:
        text = probe.file.read_text()
    except OSError as error:
        return f"{probe.file.parent} there does not have the file that was put into it here ({type(error).__name__})"
    if text != probe.text:
        return f"{probe.file.parent} there is another folder than here"
    return None if os.access(probe.file.parent, os.W_OK) else f"{probe.file.parent} cannot be written to there"
