"""The service as a process of its own, for tests that talk to it."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SERVER = ROOT / "services" / "visionreward" / "server.py"
TINY_MODELS = Path(__file__).with_name("tiny_models.py")
SECONDS_TO_START = 60.0


@contextmanager
def running_service(model: Path | str, *arguments: str, adapter: str | None = None, port: int = 0) -> Iterator[str]:
    """The service with a model, and its address. `adapter` is a class of tiny_models.py; none: the service's own."""
    own = ["--adapter", f"{TINY_MODELS}:{adapter}"] if adapter else []
    command = [sys.executable, str(SERVER), "--model", str(model), "--port", str(port), *own, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": ""}) as process:
        try:
            yield _address(process)
        finally:
            process.terminate()
            process.wait(20)


def _address(process: subprocess.Popen[str]) -> str:
    """The address that the service prints when it is ready."""
    assert process.stdout is not None
    impatience = threading.Timer(SECONDS_TO_START, process.kill)
    impatience.start()
    try:
        for line in process.stdout:
            if line.startswith("ready: "):
                return line.split()[1]
    finally:
        impatience.cancel()
    raise AssertionError(f"the service did not start: {process.wait(20)}")
