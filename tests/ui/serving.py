"""`vpo ui` on a free port of this machine, with a home of its own: webserver, daemon and code server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from vpo_assets.platform import BUNDLED_QUERIES

START_SECONDS = 240.0


@dataclass(frozen=True)
class Served:
    """A running UI, the home folder that it works on, its query file, and the process that everything of it is in."""

    address: str
    home: Path
    queries: Path
    pid: int


@contextmanager
def serving(folder: Path, queries: int, **settings: str) -> Iterator[Served]:
    """`vpo ui` in this folder, with so many of the bundled queries and these variables set; ended with all it began."""
    file = folder / "some_queries.jsonl"
    file.write_text("".join(BUNDLED_QUERIES.read_text("utf-8").splitlines(keepends=True)[:queries]), "utf-8")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("VPO_")},
        "VPO_HOME": str(folder / "home"),
        "VPO_QUERIES__FILES": json.dumps([str(file)]),
        **settings,
    }
    port = free_port()
    log = folder / "ui.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "vpo_assets.command_line", "ui", "--port", str(port)],
            env=environment,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_served(address, process, log)
            yield Served(address, folder / "home", file, process.pid)
        finally:
            end_group(process)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_until_served(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the UI ended at once:\n{log.read_text()[-3000:]}"
        with suppress(URLError, OSError), urlopen(f"{address}/server_info", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.5)
    raise AssertionError(f"the UI did not start within {START_SECONDS:.0f} s:\n{log.read_text()[-3000:]}")


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End the UI and everything it started."""
    for ending in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, ending)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
