"""The jobs that a video server was asked for, remembered across crashes.

Belongs here: which job belongs to which video. Does not belong here: asking for jobs (video_server.py), or the videos.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

KEPT_DAYS = 7
"""Older jobs are forgotten: by then their videos are fetched, or the server has forgotten them too."""

FILE = "jobs.sqlite"
SECONDS_TO_WAIT = 30.0  # for another process that is writing


class VideoJobs:
    """Job ids by the content id of what they render, in a file that outlives this process; or, without a folder,
    only as long as this object."""

    def __init__(self, folder: Path | None) -> None:
        self._file = folder / FILE if folder is not None else None
        self._here: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        """The job that was asked for, if any."""
        if self._file is None:
            return self._here.get(key)
        if not self._file.exists():
            return None
        with closing(self._open(self._file)) as jobs:
            row = jobs.execute("SELECT job FROM jobs WHERE key = ?", [key]).fetchone()
        return str(row[0]) if row else None

    def put(self, key: str, job: str) -> None:
        """Remember a job. It is on the disk when this returns."""
        if self._file is None:
            self._here[key] = job
            return
        with closing(self._open(self._file)) as jobs:
            jobs.execute("DELETE FROM jobs WHERE asked_at < datetime('now', ?)", [f"-{KEPT_DAYS} days"])
            jobs.execute("INSERT OR REPLACE INTO jobs VALUES (?, ?, datetime('now'))", [key, job])

    def forget(self, key: str) -> None:
        """The next one who wants this video asks for a new job."""
        if self._file is None:
            self._here.pop(key, None)
            return
        with closing(self._open(self._file)) as jobs:
            jobs.execute("DELETE FROM jobs WHERE key = ?", [key])

    @staticmethod
    def _open(file: Path) -> sqlite3.Connection:
        """A connection that commits every statement."""
        file.parent.mkdir(parents=True, exist_ok=True)
        jobs = sqlite3.connect(file, timeout=SECONDS_TO_WAIT, isolation_level=None)
        jobs.execute(
            "CREATE TABLE IF NOT EXISTS jobs (key TEXT PRIMARY KEY, job TEXT NOT NULL, asked_at TEXT NOT NULL)"
        )
        return jobs
