"""What people see of a run in the terminal, and the file that keeps everything.

Belongs here: turning Dagster's events into short lines. Does not belong here: running anything.
"""

import logging
import os
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from dagster import DagsterEvent, DagsterEventType, EventLogEntry
from rich.console import Console
from rich.status import Status
from rich.text import Text

from vpo_assets.report.plain_text import one_line

SECONDS_BETWEEN_LINES = 15.0
_COUNTS = ("new", "redone", "reused", "removed", "failed", "given_up", "quarantined")


class RunProgress:
    """A listener to a run: lines for the terminal, all entries for the log file.

    `assets` gives the asset of a step by the step's key; other steps are asset checks. In a terminal the rows done
    are shown in a line that is written over; elsewhere as lines, some seconds apart.
    """

    def __init__(self, console: Console, log: TextIO, assets: Mapping[str, str]) -> None:
        self._assets = assets
        self._console = console
        self._log = log
        self._started: dict[str, float] = {}
        self._shown = 0.0
        self._status: Status | None = None
        self.done: list[str] = []
        self.failed: dict[str, str] = {}
        self.interrupted = False

    def __call__(self, entry: EventLogEntry) -> None:
        self._log.write(_log_line(entry))
        self._log.flush()
        event = entry.dagster_event
        if event is None:
            if int(entry.level) >= logging.INFO and entry.step_key:
                self._rows(self._assets.get(entry.step_key, entry.step_key), entry.user_message)
        elif event.event_type in (DagsterEventType.RUN_CANCELING, DagsterEventType.RUN_CANCELED):
            self.interrupted = True
        elif event.step_key is not None:
            self._event(event, event.step_key, self._assets.get(event.step_key))

    def close(self) -> None:
        """Take the line of the rows done away."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _event(self, event: DagsterEvent, step: str, asset: str | None) -> None:
        if event.event_type == DagsterEventType.STEP_START and asset is not None:
            self._started[asset] = self._shown = time.monotonic()
            self._line(asset, "started")
        elif event.event_type == DagsterEventType.ASSET_MATERIALIZATION and asset is not None:
            metadata = event.step_materialization_data.materialization.metadata
            values = {name: value.value for name, value in metadata.items()}
            self.done.append(asset)
            self._line(asset, f"done in {self._seconds(asset):.1f} s{_counts(values)}", "green")
        elif event.event_type == DagsterEventType.ASSET_CHECK_EVALUATION:
            evaluation = event.asset_check_evaluation_data
            if not evaluation.passed:
                severity = "failed" if evaluation.severity.value == "ERROR" else "warns"
                self._line(
                    evaluation.asset_key.to_user_string(),
                    f"check {evaluation.check_name} {severity}{_metadata(evaluation.metadata)}",
                    "yellow",
                )
        elif event.event_type == DagsterEventType.STEP_FAILURE:
            name = asset or step
            reason = _innermost(event.step_failure_data.error)
            if reason.endswith("DagsterExecutionInterruptedError"):
                self.interrupted = True
                reason = "interrupted; what was finished is kept, and the next run goes on from there"
            self.failed[name] = reason
            what = "interrupted" if self.interrupted else "failed"
            self._line(name, f"{what} after {self._seconds(name):.1f} s", "red")

    def _seconds(self, asset: str) -> float:
        return time.monotonic() - self._started.get(asset, time.monotonic())

    def _rows(self, asset: str, message: str) -> None:
        """Progress inside an asset."""
        line = _first_line(message)
        if self._console.is_terminal:
            if self._status is None:
                self._status = self._console.status("")
                self._status.start()
            self._status.update(Text(f"{asset}: {line}", overflow="ellipsis", no_wrap=True))
        elif time.monotonic() - self._shown >= SECONDS_BETWEEN_LINES:
            self._shown = time.monotonic()
            self._line(asset, line)

    def _line(self, asset: str, what: str, style: str = "") -> None:
        self.close()
        now = f"{datetime.now():%H:%M:%S}"
        self._console.print(Text.assemble((f"{now}  ", "dim"), f"{asset:<28} ", (what, style)), soft_wrap=True)


def console_beside_capture() -> Console:
    """A console on the standard output as it is now: while a step runs, Dagster turns the standard output itself
    into the step's log, which these lines are no part of."""
    try:
        return Console(file=os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8"))
    except OSError:  # not a file, in tests
        return Console()


def run_log(home: Path, run_id: str) -> Path:
    """The file that keeps everything a run logs."""
    folder = home / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{run_id}.log"


def _log_line(entry: EventLogEntry) -> str:
    at = datetime.fromtimestamp(entry.timestamp).isoformat(timespec="milliseconds")
    event = entry.dagster_event
    kind = event.event_type_value if event is not None else ""
    lines = [f"{at} {entry.step_key or '-'} {kind} {entry.message}".rstrip()]
    if event is not None and event.event_type == DagsterEventType.STEP_FAILURE and event.step_failure_data.error:
        lines.append(event.step_failure_data.error.to_string())
    return "\n".join(lines) + "\n"


def _counts(values: dict[str, Any]) -> str:
    """What a materialization says of its rows."""
    rows = values.get("dagster/row_count")
    said = [f"{rows:,} rows"] if isinstance(rows, int) else []
    said += [f"{values[name]:,} {name.replace('_', ' ')}" for name in _COUNTS if values.get(name)]
    if "trained_now" in values:
        said.append("trained" if values["trained_now"] else "already trained")
    if "checkpoint" in values:
        said.append(str(values["checkpoint"]))
    return f": {', '.join(said)}" if said else ""


def _metadata(metadata: Any) -> str:
    said = ", ".join(f"{name} {one_line(value.value, 60)}" for name, value in metadata.items())
    return f" ({said})" if said else ""


def _innermost(error: Any) -> str:
    """The first line of the error at the bottom of the chain: the one that a step raised."""
    if error is None:
        return "failed without saying why"
    while error.cause is not None:
        error = error.cause
    name = error.cls_name or "Error"
    message: str = error.message.strip()
    # Dagster writes `package.module.Name: what happened`.
    prefix, separator, rest = message.partition(": ")
    if separator and prefix.rpartition(".")[2] == name:
        message = rest if "." in prefix else f"{name}: {rest}"
    return _first_line(message)


def _first_line(text: str) -> str:
    return one_line((text.strip().splitlines() or [""])[0])
