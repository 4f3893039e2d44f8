"""The two servers together, started and stopped from Python.

Belongs here: free ports, waiting until the object store answers, and its outages. Does not belong here: what the
servers are (postgres.py, object_store.py).
"""

import importlib.util
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from services.local_servers.postgres import PostgresMissing, programs

NEEDED = ("moto", "flask", "flask_cors", "werkzeug")
STARTS_WITHIN = 60.0


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def what_is_missing() -> str | None:
    """What must be installed before these servers can run; None if nothing is."""
    try:
        programs()
    except PostgresMissing as missing:
        return str(missing)
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"the S3 server is not installed: pip install 'moto[s3]' flask flask-cors ({absent[0]})" if absent else None


class LocalObjectStore:
    """The S3 server in a process of its own, with these buckets; `folder` takes its log.

    Raises RuntimeError if it does not answer within a minute.
    """

    def __init__(self, folder: Path, port: int, buckets: Sequence[str] = ("lake",)) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._outage = Path(folder) / "outage"
        self._log = Path(folder) / "object_store.log"
        arguments = ["--port", str(port), "--outage-file", str(self._outage)]
        for bucket in buckets:
            arguments += ["--bucket", bucket]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 (this very interpreter)
                [sys.executable, "-m", "services.local_servers.object_store", *arguments],
                cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._wait(port)

    def begin_outage(self) -> None:
        """Answer every request with 503 from now on."""
        self._outage.touch()

    def end_outage(self) -> None:
        """Serve again."""
        self._outage.unlink(missing_ok=True)

    def stop(self) -> None:
        """End the process; what it held is gone."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait()

    def _wait(self, port: int) -> None:
        until = time.monotonic() + STARTS_WITHIN
        while time.monotonic() < until and self.process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"the S3 server did not start: {self._log.read_text(errors='replace')[-2000:].strip()}")
