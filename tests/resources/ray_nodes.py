"""A Ray cluster of several nodes on this machine, each with an address of its own, to be killed node by node.

Belongs here: starting and killing nodes. Does not belong here: what is tried on them.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

RAY = Path(sys.executable).with_name("ray")
HEAD = "127.0.0.2"
STORE = 100_000_000  # bytes of object store a node
TOKEN = secrets.token_hex(32)
"""One for all clusters of this process: Ray reads it once."""


@contextmanager
def two_nodes() -> Iterator["Nodes"]:
    """A head and a node, and an environment in which this process may connect to them."""
    nodes = Nodes()
    before = dict(os.environ)
    os.environ.update(nodes.environment)  # before the import: Ray reads its token once
    import ray

    try:
        nodes.add()
        yield nodes
    finally:
        ray.shutdown()
        nodes.close()
        os.environ.clear()
        os.environ.update(before)


class Nodes:
    """A head on 127.0.0.2, to which drivers connect, and further nodes."""

    def __init__(self, cpus: int = 2, dashboard_port: int | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vpo-ray-"))  # sockets' paths must be short
        self.cpus = cpus
        with socket.create_server((HEAD, 0)) as probe:
            self.port = probe.getsockname()[1]
        (self.folder / "token").write_text(TOKEN)
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._last = 2
        dashboard = ["--include-dashboard=false"]
        if dashboard_port is not None:
            dashboard = ["--include-dashboard=true", f"--dashboard-host={HEAD}", f"--dashboard-port={dashboard_port}"]
        self._start(HEAD, "--head", f"--port={self.port}", f"--temp-dir={self.folder}", *dashboard)

    @property
    def address(self) -> str:
        return f"{HEAD}:{self.port}"

    def add(self) -> str:
        """Another node; its address."""
        self._last += 1
        address = f"127.0.0.{self._last}"
        self._start(address, f"--address={self.address}")
        return address

    @property
    def addresses(self) -> list[str]:
        """Those that run, the head first."""
        return list(self._processes)

    def processes_of(self, address: str) -> set[int]:
        """Everything that belongs to a node, workers included."""
        return {child.pid for child in psutil.Process(self._processes[address].pid).children(recursive=True)}

    def kill(self, address: str) -> None:
        """kill -9 of everything that belongs to a node."""
        self._end(self._processes.pop(address))

    def close(self) -> None:
        for process in self._processes.values():
            self._end(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, address: str, *arguments: str) -> None:
        log = (self.folder / f"{address}.log").open("wb")
        command = [str(RAY), "start", "--block", f"--node-ip-address={address}", f"--num-cpus={self.cpus}"]
        command += [f"--object-store-memory={STORE}", "--disable-usage-stats", *arguments]
        self._processes[address] = subprocess.Popen(
            command, env=os.environ | self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
        )
        self._wait_until_up(address)

    def _wait_until_up(self, address: str) -> None:
        deadline = time.monotonic() + 60
        log = self.folder / f"{address}.log"
        while b"Ray runtime started" not in log.read_bytes():
            if time.monotonic() > deadline or self._processes[address].poll() is not None:
                raise RuntimeError(f"the node {address} does not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)

    @staticmethod
    def _end(process: "subprocess.Popen[bytes]") -> None:
        everyone = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for one in everyone:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        process.wait()
