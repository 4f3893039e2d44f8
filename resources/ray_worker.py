"""What runs in a Ray worker: the batch function, unpacked once, and the answers to who is asking.

Belongs here: the actor, and what driver and actor say to each other. Ray is not imported, so that this can be tried
without it. Does not belong here: starting actors and handing out batches (ray_compute.py).
"""

import hashlib
import os
import pickle
import socket
import subprocess
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pyarrow as pa

from storage.object_store import ObjectStoreError
from storage.refresh import BatchFunction, BatchResult, StopRefresh
from storage.remote_files import RemoteFiles

CHECKOUT = Path(__file__).parent.parent
PACKAGES = ("ml", "resources", "storage", "vpo_assets")


@dataclass(frozen=True)
class Probe:
    """What a worker is asked before it gets work: does it see this file, with this text in it? Without a text: can it
    write where the file would be, on its own node? And does each of the `places` in an object store answer it?"""

    file: Path
    text: str | None
    places: tuple[RemoteFiles, ...] = ()


@dataclass(frozen=True)
class WorkerReport:
    """What it answers. `fault`: why it cannot load the batch function, `store`: why the folder is not the driver's,
    `place`: why it could not fetch or put what lies in an object store."""

    host: str
    pid: int
    code: str
    fault: str | None
    store: str | None
    place: str | None = None


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
        return replace(seen_from_here(probe), fault=fault)

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
    host = socket.gethostname(), os.getpid()
    return WorkerReport(*host, project_code(), None, store_fault(probe), place_fault(probe))


@dataclass(frozen=True)
class NodeMemory:
    """Bytes of a node: of main memory in all, and what is free on each of its GPUs."""

    host: str
    main: int
    free_on_gpus: tuple[int, ...] = ()


def memory_from_here(host: str) -> NodeMemory:
    """The memory of the node that this runs on, which is called `host`. NVIDIA's own tool is asked for the GPUs: Ray
    hides them from work that holds none."""
    main = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)  # noqa: S603 (no word of it is given)
        said = ran.stdout
        return NodeMemory(host, main, tuple(int(line) * 2**20 for line in said.split()))
    except (OSError, subprocess.SubprocessError, ValueError):  # no GPU, or none that tells
        return NodeMemory(host, main)


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
    """Why the folder of a probe is not the one that the driver put it into; None if it is, or need not be."""
    if probe.text is None:
        return None
    try:
        text = probe.file.read_text()
    except OSError as error:
        return f"{probe.file.parent} there does not have the file that was put into it here ({type(error).__name__})"
    if text != probe.text:
        return f"{probe.file.parent} there is another folder than here"
    return None if os.access(probe.file.parent, os.W_OK) else f"{probe.file.parent} cannot be written to there"


def place_fault(probe: Probe) -> str | None:
    """Why copies cannot be fetched from the probe's places in an object store and kept here; None if they can."""
    for place in probe.places:
        try:
            place.look(probe.file.name)
        except ObjectStoreError as error:
            return str(error)
        except ImportError as error:
            return f"{described(error)} (pip install 'vpo-platform[cluster]')"
    if probe.text is None:
        try:
            probe.file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return f"{probe.file.parent} cannot be made there ({type(error).__name__})"
        if not os.access(probe.file.parent, os.W_OK):
            return f"{probe.file.parent} cannot be written to there"
    return None
