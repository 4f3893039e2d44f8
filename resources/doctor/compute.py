"""Can batches be worked on where the profile says?

Belongs here: whether Ray is installed, its cluster answers, and a node has what a worker asks for. Does not belong
here: the models that workers load (memory_checks.py).
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from resources.compute_settings import RayComputeSettings
from resources.doctor.findings import Finding, fault, ok, warning
from resources.doctor.machine import Machine
from resources.outcome import Unavailable
from resources.ray_cluster import HOW_TO_INSTALL, connect
from resources.settings import Profile

KEY = "compute"


def check_compute(profile: Profile, machine: Machine) -> Iterator[Finding]:
    """Nothing about `local`. A running cluster is joined for a moment; none is started."""
    settings = profile.compute
    if not isinstance(settings, RayComputeSettings):
        return
    version = machine.version("ray")
    if version is None:
        yield fault(KEY, "ray, which compute.backend needs, is not installed", HOW_TO_INSTALL)
        return
    if settings.address is None:
        cpus, gpus = settings.local_cpus or os.cpu_count() or 1, len(machine.gpus())
        yield ok(KEY, f"ray {version}; each run starts a cluster on this machine ({cpus} CPUs, {gpus} GPUs)")
        yield from _check_room(settings, [{"CPU": cpus, "GPU": gpus}])
        return
    try:
        nodes = _nodes(settings)
    except Unavailable as error:
        yield fault(KEY, str(error), "see docs/cluster.md")
        return
    yield ok(KEY, f"ray {version}; the cluster at {settings.address} answers with {len(nodes)} nodes")
    yield from _check_room(settings, nodes)


def _nodes(settings: RayComputeSettings) -> list[Mapping[str, Any]]:
    """What each living node of a running cluster has."""
    ray = connect(settings)
    try:
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


def _check_room(settings: RayComputeSettings, nodes: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Whether a worker fits on a node, and all of them on all. Nodes that an autoscaler would add are not known."""
    cpus, gpus = settings.cpus_per_worker, settings.gpus_per_worker
    asked = f"{cpus:g} CPUs and {gpus:g} GPUs"
    fitting = sum(_fit(node, cpus, gpus, settings.workers) for node in nodes)
    if fitting == 0:
        yield warning(
            KEY,
            f"no node has the {asked} that one worker asks for",
            "lower compute.gpus_per_worker or compute.cpus_per_worker, unless nodes are added when they are asked for",
        )
    elif fitting < settings.workers:
        yield warning(
            KEY,
            f"{fitting} of {settings.workers} workers ({asked} each) fit on the nodes there are",
            "the others wait; lower compute.workers, or add nodes",
        )


def _fit(node: Mapping[str, Any], cpus: float, gpus: float, most: int) -> int:
    """How many workers a node has room for."""
    room = [most]
    for name, asked in (("CPU", cpus), ("GPU", gpus)):
        if asked:
            room.append(int(node.get(name, 0) / asked))
    return min(room)
