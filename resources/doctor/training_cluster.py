"""Can a training be started on a Ray cluster?

Belongs here: whether the cluster of `trainer.launcher: ray` answers, has room for the workers, and each of its nodes
sees the folders of a training and has the memory for it. Does not belong here: how much memory that is
(memory_checks.py), batches (compute.py), and what is the same on one machine (training.py).
"""

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from resources.compute_settings import RayTrainingSettings
from resources.doctor.findings import Finding, fault, ok, warning
from resources.doctor.machine import Machine
from resources.doctor.memory_checks import check_training_memory
from resources.doctor.weights import Weights
from resources.outcome import Unavailable
from resources.ray_cluster import HOW_TO_INSTALL, connect
from resources.ray_worker import NodeMemory, Probe, WorkerReport, memory_from_here, project_code, seen_from_here
from resources.settings import Profile
from storage.object_store import is_object_url

KEY = "trainer.ray"
SECONDS_TO_ANSWER = 60.0


def check_training_cluster(
    profile: Profile, machine: Machine, weights: Mapping[str, Weights] = MappingProxyType({})
) -> Iterator[Finding]:
    """Nothing about `launcher: accelerate`. A running cluster is joined for a moment; none is started. `weights`: of
    the models that are known, whose trainings are compared with the memory of the nodes."""
    if profile.trainer.launcher != "ray":
        return
    settings = profile.trainer.ray.on_cluster_of(profile.compute)
    version = machine.version("ray")
    if version is None:
        yield fault(KEY, "ray, which trainer.launcher needs, is not installed", HOW_TO_INSTALL)
        return
    if settings.address is None:
        here: dict[str, float] = {"CPU": settings.local_cpus or os.cpu_count() or 1, "GPU": len(machine.gpus())}
        yield ok(KEY, f"ray {version}; each training starts a cluster on this machine")
        yield from _check_room(settings, [here])
        memory = NodeMemory("here", machine.main_memory(), tuple(gpu.free for gpu in machine.gpus()))
        yield from check_training_memory(profile, weights, [memory])
        return
    try:
        nodes, unfit, memories = _look_around(settings, _folders(profile))
    except Unavailable as error:
        yield fault(KEY, str(error), "see docs/cluster.md")
        return
    for text, remedy in unfit:
        yield fault(KEY, text, remedy)
    if not unfit:
        yield ok(KEY, f"ray {version}; all {len(nodes)} nodes at {settings.address} see the folders of a training")
    yield from _check_room(settings, nodes)
    yield from check_training_memory(profile, weights, memories)


def _folders(profile: Profile) -> list[Path]:
    """Where workers read and write: states and training files, and the checkpoint that is being made."""
    checkpoints = profile.checkpoints
    if checkpoints is None or is_object_url(checkpoints):
        return [profile.home / "training"]  # copies and unfinished ones are in home, too
    return [profile.home / "training", Path(checkpoints).expanduser().resolve()]


def _look_around(
    settings: RayTrainingSettings, folders: list[Path]
) -> tuple[list[dict[str, float]], list[tuple[str, str]], list[NodeMemory]]:
    """What each living node has; a text and a remedy for each that could not take part; and the memory of those that
    workers could be placed on and that told. Raises Unavailable."""
    ray = connect(settings)
    probes = [Probe(folder / f".seen-by-workers-{secrets.token_hex(8)}", secrets.token_hex(16)) for folder in folders]
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        for probe in probes:
            probe.file.parent.mkdir(parents=True, exist_ok=True)
            probe.file.write_text(probe.text or "")
        unfit = [found for node in nodes for found in _faults(ray, node, probes)]
        memories = [memory for node in nodes if _has_room(settings, node) for memory in _memory(ray, node)]
        return [dict(node["Resources"]) for node in nodes], unfit, memories
    finally:
        for probe in probes:
            probe.file.unlink(missing_ok=True)
        ray.shutdown()


def _has_room(settings: RayTrainingSettings, node: dict[str, Any]) -> bool:
    """Whether a node could hold one worker, so that a head without CPUs or GPUs is not asked."""
    has = node["Resources"]
    return bool(has.get("CPU", 0) >= settings.cpus_per_worker and has.get("GPU", 0) >= settings.gpus_per_worker)


def _on_node(ray: Any, node: dict[str, Any], function: Callable[..., Any]) -> Any:
    """The function as a task of this node, which holds none of its CPUs."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(function).options(num_cpus=0, scheduling_strategy=there)


def _memory(ray: Any, node: dict[str, Any]) -> Iterator[NodeMemory]:
    """Nothing of a node that cannot run the project: `_faults` has said so."""
    with suppress(ray.exceptions.RayError):
        task = _on_node(ray, node, memory_from_here)
        yield ray.get(task.remote(node["NodeManagerAddress"]), timeout=SECONDS_TO_ANSWER)


def _faults(ray: Any, node: dict[str, Any], probes: list[Probe]) -> Iterator[tuple[str, str]]:
    where = f"the Ray node {node['NodeManagerAddress']}"
    look = _on_node(ray, node, seen_from_here)
    for probe in probes:
        try:
            report: WorkerReport = ray.get(look.remote(probe), timeout=SECONDS_TO_ANSWER)
        except ray.exceptions.RayError as error:
            said = " ".join(str(error).split())[:200]
            yield f"{where} cannot run the project: {said}", "install it on every node as it is here"
            return
        if report.code != project_code():
            yield f"{where} has other source code of the project than this machine", "install the same on every node"
            return
        if report.store is not None:
            yield f"{where} does not see the same VPO_HOME: {report.store}", "put it on a file system that all share"
            return


def _check_room(settings: RayTrainingSettings, nodes: list[dict[str, float]]) -> Iterator[Finding]:
    """Whether all workers find room at once. Nodes that an autoscaler would add are not known."""
    asked = {"CPU": settings.cpus_per_worker, "GPU": settings.gpus_per_worker}
    room = sum(
        min((int(node.get(name, 0) / number) for name, number in asked.items() if number), default=settings.workers)
        for node in nodes
    )
    if room < settings.workers:
        yield warning(
            KEY,
            f"{room} of {settings.workers} workers ({asked['CPU']:g} CPUs and {asked['GPU']:g} GPUs each) fit on the "
            "nodes there are, and a training needs all of them at once",
            "lower trainer.ray.workers, or add nodes",
        )
