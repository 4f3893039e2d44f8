"""The settings of Diffusion-DPO: which films make a pair, and how a video model learns from pairs.

Belongs here: the settings alone. Does not belong here: the selection (video_pairs.py) and the training
(diffusion_dpo.py).
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class VideoPairSettings(BaseModel):
    """Which films of a query make a pair: the best against the worst that were made of one conditioning text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    condition: Literal["query", "prompt"] = Field(
        "query",
        description="what a pair's films are films of, and the text that the model learns to film: the user's query, "
        "with the films of all its candidates, or one candidate, with the films of its seeds",
    )
    margin: float = Field(0.5, ge=0, description="the chosen score must exceed the rejected one by more than this")
    per_text: int = Field(1, ge=1, description="pairs a text: best against worst, second best against second worst, ..")


class AlignmentSettings(BaseModel):
    """Diffusion-DPO of a video model's transformer (Wallace et al. 2023, arXiv 2311.12908)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pairs: VideoPairSettings = VideoPairSettings()
    learning_rate: float = Field(2e-5, gt=0)
    steps: int = Field(300, ge=1)
    batch_size: int = Field(16, ge=1, description="pairs a step")
    micro_batch_size: int = Field(16, ge=1, description="pairs that pass through the model at once")
    beta: float = Field(2000.0, gt=0, description="strength of the tie to the model as it was")
    warmup: int = Field(20, ge=0, description="steps of linear warm-up; the rate is constant after them")
    gradient_checkpointing: bool = False
    save_every: int = Field(50, ge=1, description="steps between the states that a crashed run resumes from")
    seed: int | None = Field(None, description="default: the profile's seed")
