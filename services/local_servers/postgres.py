"""A Postgres server of one's own in a folder, from Debian's package `postgresql`.

Belongs here: making, starting, stopping and removing it. It listens on 127.0.0.1 only and asks for a password.
"""

import os
import shutil
import subprocess
from pathlib import Path

USER = "vpo"
NOT_ROOT = "postgres"
"""Debian's user for Postgres, which refuses to run as root."""


class PostgresMissing(RuntimeError):
    """Postgres is not installed, or cannot be run by this user; says what to do."""


class LocalPostgres:
    """A server in `folder` on `port`, made when it is first started. `password` is that of its one user, vpo.

    Raises PostgresMissing, or RuntimeError with the server's own words if it does not start.
    """

    def __init__(self, folder: Path, port: int, password: str) -> None:
        self.folder = Path(folder).absolute()
        self.port = port
        self._password = password
        self._programs = programs()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        if not (self.folder / "data" / "PG_VERSION").exists():
            self._make()
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        self._run("pg_ctl", "start", "--wait", "-D", self._data, "-l", str(self.folder / "log"), "-o", options)

    def stop(self, mode: str = "fast") -> None:
        """Stop the server. `mode`: fast ends sessions in order; immediate is as if the machine had gone down."""
        self._run("pg_ctl", "stop", "--wait", "-D", self._data, "-m", mode)

    def restart(self, mode: str = "fast") -> None:
        """Stop and start it: every session is cut off."""
        self.stop(mode)
        self.start()

    def create_database(self, name: str) -> str:
        """Make an empty database; its address, without the password, which goes into PGPASSWORD."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, name)
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{name}"

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _make(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if os.getuid() == 0:
            shutil.chown(self.folder, NOT_ROOT)
        file = self.folder / "password"
        file.touch(mode=0o600)
        file.write_text(self._password + "\n", encoding="utf-8")
        if os.getuid() == 0:
            shutil.chown(file, NOT_ROOT)
        try:
            self._run("initdb", "-D", self._data, "-A", "scram-sha-256", "-U", USER, f"--pwfile={file}", "-E", "UTF8")
        finally:
            file.unlink()

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(  # noqa: S603 (Postgres' own programs, arguments of this module)
            [str(self._programs / program), *arguments],
            cwd="/",
            env={**os.environ, "PGPASSWORD": self._password},
            user=NOT_ROOT if os.getuid() == 0 else None,
            group=NOT_ROOT if os.getuid() == 0 else None,
            extra_groups=[] if os.getuid() == 0 else None,
            # The server inherits them: pipes would never end.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if program == "pg_ctl" else subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            log = self.folder / "log"
            said = done.stderr or (log.read_text(errors="replace")[-2000:] if log.exists() else "")
            raise RuntimeError(f"{program} of Postgres failed: {said.strip() or f'exit code {done.returncode}'}")


def programs() -> Path:
    """Debian's folder of Postgres' programs, the newest release. Raises PostgresMissing."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda file: float(file.parts[-3]))
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        raise PostgresMissing("Postgres is not installed: apt-get install postgresql")
    return found[-1].parent if found else Path(str(on_path)).resolve().parent
