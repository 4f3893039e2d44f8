"""The settings of a prompt optimizer at work: what it refuses, how it is served, and what goes into a model's folder.

Belongs here: the sections `safety` and `serving` of a profile, and the file that makes a model folder an optimizer by
itself. Does not belong here: the optimizer (prompt_optimizer.py) or the server (serving/).
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from ml.templates import REQUIRED, Template, TemplateProblem
from resources.backend_settings import ModelDtype, SamplingSettings, Section

OPTIMIZER_FILE = "vpo_optimizer.json"
LARGEST_FILE = 1_000_000
"""Bytes of a file of optimizer settings; templates are a few lines."""


class SafetySettings(Section):
    """What an optimizer does with an output that fails the offline judge (ml/rules.py).

    An unsafe output and a refusal are never given out.
    """

    retries: int = Field(3, ge=0, le=20, description="times that a failing output is drawn again, by other seeds")
    refuse_imprecise: bool = Field(
        False, description="fail outputs that lose details, too; rules are often wrong about that in free English"
    )


class ServingSettings(Section):
    """`vpo serve`."""

    port: int = Field(8700, ge=1, le=65535, description="on 127.0.0.1")
    batch_size: int = Field(32, ge=1, description="requests that are answered together at most")
    wait_ms: float = Field(10.0, ge=0, le=10_000, description="how long the first of a batch waits for others")
    queue: int = Field(256, ge=1, description="prompts that wait at most; more are turned away with 429")
    longest_query: int = Field(4000, ge=1, description="characters")
    most_choices: int = Field(16, ge=1, description="`n` of a request at most")
    most_new_tokens: int = Field(1024, ge=1, description="`max_tokens` of a request at most")
    shutdown_seconds: int = Field(30, ge=1, description="for requests under way when the server is told to end")


class OptimizerSettings(Section):
    """Everything beside the weights that decides what an optimizer writes; kept in a model's folder as JSON."""

    format: Literal[1] = 1
    name: str = Field(min_length=1, max_length=200, description="the checkpoint's id")
    template: str = Field(description="the template `optimize`")
    sampling: SamplingSettings = SamplingSettings()
    safety: SafetySettings = SafetySettings()
    dtype: ModelDtype = "bfloat16"
    seed: int = 0

    def optimize_template(self) -> Template:
        """The template. Raises TemplateProblem if it is broken or does not use the query."""
        template = Template("optimize", self.template)
        lacking = sorted(REQUIRED["optimize"] - template.placeholders)
        if lacking:
            raise TemplateProblem(f"The template 'optimize' does not use {', '.join(lacking)}.")
        return template


class NoOptimizer(ValueError):
    """A folder that is no prompt optimizer; says what is missing or wrong."""


def read_optimizer(folder: Path) -> OptimizerSettings:
    """The settings in a model's folder. Raises NoOptimizer."""
    file = folder / OPTIMIZER_FILE
    if not file.is_file():
        raise NoOptimizer(
            f"{folder} is no prompt optimizer: it has no {OPTIMIZER_FILE}; `vpo publish` writes such folders"
        )
    if file.stat().st_size > LARGEST_FILE:
        raise NoOptimizer(f"{file} is too large to be a file of settings")
    try:
        settings = OptimizerSettings.model_validate_json(file.read_bytes())
        settings.optimize_template()
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"])) or "file"
        raise NoOptimizer(f"{file}: {key}: {fault['msg']}") from None
    except TemplateProblem as error:
        raise NoOptimizer(f"{file}: {error}") from None
    return settings
