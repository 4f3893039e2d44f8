"""The settings of where batches are worked on, as they stand in a profile.

Belongs here: one section a backend, and what the kinds of work (stages) may be given of their own. Does not belong
here: working on anything (compute.py, ray_compute.py).
"""

import re
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, Field, JsonValue, Tag, field_validator

from resources.backend_settings import Section, choice_of

Stage: TypeAlias = Literal["prompts", "critiques", "videos", "rewards"]
"""A kind of work on rows: prompts are written, critiques judged, videos rendered, rewards answered."""

HOST_AND_PORT = re.compile(r"^(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})$")


def _address(address: str | None) -> str | None:
    if address is None or address == "auto" or HOST_AND_PORT.match(address):
        return address
    if address.startswith("ray://"):
        raise ValueError(
            "ray:// (Ray Client) is not supported: start the run on a node of the cluster (`ray start --address ...` "
            "makes this machine one) and give host:port"
        )
    raise ValueError("must be host:port of the cluster's head, auto (the cluster this machine is a node of), or null")


def _gpus(gpus: float | None) -> float | None:
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        raise ValueError("must be a fraction of one GPU or a whole number of them")
    return gpus


Gpus = Annotated[float, AfterValidator(_gpus)]


class LocalComputeSettings(Section):
    """Batch after batch in the run's own process."""

    backend: Literal["local"] = "local"


class StageSettings(Section):
    """What one stage's workers have of their own; what is left out is as for all."""

    workers: int | None = Field(None, ge=1)
    gpus_per_worker: Gpus | None = Field(None, ge=0)
    cpus_per_worker: float | None = Field(None, ge=0)
    memory_gb_per_worker: float | None = Field(None, gt=0)
    batches_in_flight: int | None = Field(None, ge=1)


class RayWorkersSettings(Section):
    """A Ray cluster, and workers on it."""

    key: ClassVar[str] = "compute"
    """Where the section stands in a profile."""
    asked_by: ClassVar[str] = "compute.backend is ray"

    address: Annotated[str | None, AfterValidator(_address)] = Field(
        None, description="host:port of a running cluster's head, or auto; none: a cluster on this machine, for the run"
    )
    node_address: str | None = Field(
        None, description="this machine's own address in the cluster, where it has several"
    )
    cpus_per_worker: float = Field(1, ge=0)
    memory_gb_per_worker: float | None = Field(None, gt=0, description="asked of Ray when it places a worker")
    start_seconds: float = Field(300, gt=0, description="patience while there is no worker at all")
    environment: dict[str, JsonValue] = Field(
        {}, description="Ray's runtime_env of the workers: working_dir, pip, env_vars; no keys, Ray writes it down"
    )
    local_cpus: int | None = Field(None, ge=1, description="CPUs that a cluster on this machine counts; none: its own")

    @field_validator("environment")
    @classmethod
    def _no_keys(cls, environment: dict[str, Any]) -> dict[str, Any]:
        variables = environment.get("env_vars", {})
        for name in variables if isinstance(variables, dict) else ():
            if re.search(r"KEY|TOKEN|SECRET|PASSWORD", name, re.IGNORECASE):
                raise ValueError(f"{name} looks like a key, and Ray writes this down: set it where `ray start` runs")
        return environment


class RayComputeSettings(RayWorkersSettings):
    """Ray actors: each loads the stage's models once, holds its GPUs and takes one batch after the other."""

    backend: Literal["ray"] = "ray"
    workers: int = Field(2, ge=1, description="actors of one stage")
    gpus_per_worker: Gpus = Field(
        0, ge=0, description="a fraction, one or several; only stages that load a model hold GPUs"
    )
    batches_in_flight: int = Field(2, ge=1, description="batches a worker has: one at work, others waiting")
    deaths_per_batch: int = Field(
        2, ge=1, description="workers that a batch may cost before it is halved, and a row before it is quarantined"
    )
    stages: dict[Stage, StageSettings] = Field({}, description="other figures for prompts, critiques, videos, rewards")

    def of_stage(self, stage: Stage) -> "RayComputeSettings":
        """The settings with those of one stage put in."""
        own = self.stages.get(stage, StageSettings()).model_dump(exclude_none=True)
        return self.model_copy(update=own)


class RayTrainingSettings(RayWorkersSettings):
    """Ray Train's workers: processes of one training, on any nodes."""

    key: ClassVar[str] = "trainer.ray"
    asked_by: ClassVar[str] = "trainer.launcher is ray"

    workers: int = Field(2, ge=1, description="processes that train together")
    gpus_per_worker: int = Field(0, ge=0, le=1, description="1: each trains on a GPU of its own; 0: on CPUs")
    max_failures: int = Field(
        3, ge=0, description="how often the workers are started again, from the last state, after one was lost"
    )

    def on_cluster_of(self, compute: "ComputeSettings") -> "RayTrainingSettings":
        """The settings with compute's cluster, where none is named here."""
        if self.address is not None or not isinstance(compute, RayComputeSettings):
            return self
        update = {"address": compute.address, "node_address": self.node_address or compute.node_address}
        return self.model_copy(update=update)


ComputeSettings: TypeAlias = Annotated[
    Annotated[LocalComputeSettings, Tag("local")] | Annotated[RayComputeSettings, Tag("ray")],
    choice_of("local"),
]
COMPUTE_BACKENDS = frozenset({"local", "ray"})
