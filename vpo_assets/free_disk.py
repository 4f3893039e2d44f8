"""Room on the disk, looked at before it is written to.

Belongs here: stopping in time. Does not belong here: making room (`vpo maintain`), or what a model will need
(resources/doctor).
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from storage.refresh import StopRefresh
from vpo_assets.platform import Platform

GIB = 2**30


class DiskFull(StopRefresh):
    """Too little room is left to go on; says where, how much, and what to do. What was committed stays."""


def stop_if_disk_is_full(platform: Platform, doing: str) -> None:
    """Raise DiskFull if a folder that is about to be written to has less room than `refresh.min_free_gb`."""
    needed = platform.profile.refresh.min_free_gb
    for folder in _volumes(_written_to(platform.home)):
        free = shutil.disk_usage(folder).free / GIB
        if free < needed:
            raise DiskFull(
                f"{doing}: stopped before writing, for want of room: {folder} has {free:.2f} GB free, and "
                f"refresh.min_free_gb asks for {needed:g} GB. Make room or lower it; what is done is kept, and the "
                "next refresh does the rest."
            )


def _written_to(home: Path) -> tuple[Path, ...]:
    return home / "lake", home / "videos", home / "checkpoints", home / "training"


def _volumes(folders: Iterable[Path]) -> list[Path]:
    """One existing folder for each file system that the folders are, or will be, on."""
    found: dict[int, Path] = {}
    for folder in folders:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        found.setdefault(there.stat().st_dev, there)
    return list(found.values())
