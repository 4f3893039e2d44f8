"""The settings of VBench: where it is installed, and how much of it a target is held to.

Belongs here: the section of a profile. Does not belong here: asking the package (vbench_scorer.py).
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from resources.backend_settings import Section

VbenchDimension = Literal["human_action", "scene", "multiple_objects", "appearance_style"]
VBENCH_DIMENSIONS: tuple[VbenchDimension, ...] = ("human_action", "scene", "multiple_objects", "appearance_style")
"""The dimensions that the VPO paper reports, in its order."""


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is named twice")
    return names


class VbenchSettings(Section):
    """VBench's prompts through every optimizer, filmed by the target and scored by the package `vbench`."""

    python: Path = Field(description="the interpreter of the environment that has the package")
    version: str = Field("0.1.5", pattern=r"^[0-9][0-9A-Za-z.+-]{0,30}$", description="of the package, to be held to")
    full_info: Path | None = Field(
        None, description="VBench_full_info.json, with its prompts; none: that of the package"
    )
    dimensions: Annotated[tuple[VbenchDimension, ...], AfterValidator(_each_once)] = Field(
        VBENCH_DIMENSIONS, min_length=1
    )
    prompts_per_dimension: int | None = Field(None, ge=1, description="so many of its prompts at most; none: all")
    videos_per_prompt: int = Field(5, ge=1, description="VBench's own number is 5")
    methods: Annotated[tuple[str, ...], AfterValidator(_each_once)] | None = Field(
        None, min_length=1, description="of those that the target's evaluation compares; none: all"
    )
    device: str = Field("cuda", pattern=r"^(cuda(:\d+)?|cpu)$")
    batch: int = Field(256, ge=1, description="videos scored and committed together; models load once for each batch")
    timeout: float = Field(7200.0, gt=0, description="seconds for one batch")
