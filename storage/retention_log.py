"""What retention took from a lake, and when: a file beside the catalog, one JSON line for each maintenance.

Here: writing and reading these lines. Taking snapshots away is in `storage.maintenance`. The catalog itself forgets a
snapshot with all that was known of it, so that without this file nobody could say what became of one.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FILE = "maintenance.jsonl"


def note_expired(lake_folder: Path, snapshots: Iterable[int], **more: int | str) -> None:
    """Say that these snapshots are being taken away now."""
    line = {"at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "expired": _ranges(snapshots)}
    with (lake_folder / FILE).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line | more) + "\n")


def when_expired(lake_folder: Path, snapshot: int) -> datetime.datetime | None:
    """When retention took a snapshot; None if nothing is known of that."""
    found = None
    for line in _lines(lake_folder / FILE):
        if any(first <= snapshot <= last for first, last in line["expired"]):
            found = datetime.datetime.fromisoformat(line["at"])
    return found


def _lines(file: Path) -> Iterable[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # the last line of a process that was killed while it wrote
            continue


def _ranges(snapshots: Iterable[int]) -> list[list[int]]:
    """Runs of numbers, each as its first and last."""
    ranges: list[list[int]] = []
    for number in sorted(set(snapshots)):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges
