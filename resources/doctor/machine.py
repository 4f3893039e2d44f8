"""The machine as the checks see it.

Belongs here: asking the machine for what it has. Does not belong here: what a profile needs.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

AMPERE = 8
"""Compute capability of the first generation that computes in bfloat16."""


@dataclass(frozen=True)
class Gpu:
    """One GPU, with its memory in bytes, and whether it computes in bfloat16."""

    name: str
    memory: int
    free: int
    bfloat16: bool = True


class Machine(Protocol):
    """What the checks ask of a machine."""

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment variables."""
        ...

    def gpus(self) -> Sequence[Gpu]:
        """The GPUs that can be seen."""
        ...

    def version(self, package: str) -> str | None:
        """The version of a package that can be imported, "" where it tells none; None where there is none."""
        ...

    def main_memory(self) -> int:
        """Bytes of main memory in all."""
        ...

    def free_disk(self, folder: Path) -> int:
        """Bytes that can be written into a folder, which need not be there yet."""
        ...


class ThisMachine:
    """The machine that this runs on."""

    def __init__(self) -> None:
        self._gpus: list[Gpu] | None = None

    @property
    def environment(self) -> Mapping[str, str]:
        return os.environ

    def gpus(self) -> Sequence[Gpu]:
        if self._gpus is None:
            self._gpus = _cuda_devices()
        return self._gpus

    def version(self, package: str) -> str | None:
        try:
            if find_spec(package) is None:
                return None
        except (ImportError, ValueError):
            return None
        try:
            return metadata.version(self._distributions.get(package, [package])[0])
        except metadata.PackageNotFoundError:
            return ""

    @cached_property
    def _distributions(self) -> Mapping[str, Sequence[str]]:
        """The installed distributions that each package comes from."""
        return metadata.packages_distributions()

    def main_memory(self) -> int:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def free_disk(self, folder: Path) -> int:
        return shutil.disk_usage(existing_part(folder)).free


def existing_part(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _cuda_devices() -> list[Gpu]:
    import torch

    gpus = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        capability, _ = torch.cuda.get_device_capability(index)
        gpus.append(Gpu(torch.cuda.get_device_name(index), total, free, bfloat16=capability >= AMPERE))
    return gpus
