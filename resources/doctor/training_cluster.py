"""Can a training be started on a Ray cluster?

Belongs here: whether the cluster of `trainer.launcher: ray` answers, has room for the workers, and each of its nodes
sees the folders of a training. Does not belong here: batches (compute.py), and what is the same on one machine
(training.py).
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resources.compute_settings import RayTrainingSettings
from resources.doctor.findings import Finding, fault, ok, warning
from resources.doctor.machine import Machine
from resources.outcome import Unavailable
from resources.ray_cluster import HOW_TO_INSTALL, connect
from resources.ray_worker import Probe, WorkerReport, project_code, seen_from_here
from resources.settings import Profile
from storage.object_store import is_object_url

KEY = "trainer.ray"
SECONDS_TO_ANSWER = 60.0


def check_training_cluster(profile: Profile, machine: Machine) -> Iterator[Finding]:
    """Nothing about `launcher: accelerate`. A running cluster is joined for a moment; none is started."""
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
        return
    try:
        nodes, unfit = _look_around(settings, _folders(profile))
    except Unavailable as error:
        yield fault(KEY, str(error), "see docs/cluster.md")
        return
    for text, remedy in unfit:
        yield fault(KEY, text, remedy)
    if not unfit:
        yield ok(KEY, f"ray {version}; all {len(nodes)} nodes at {settings.address} see the folders of a training")
    yield from _check_room(settings, nodes)


def _folders(profile: Profile) -> list[Path]:
    """Where workers read and write: states and training files, and the checkpoint that is being made."""
    checkpoints = profile.checkpoints
    if checkpoints is None or is_object_url(checkpoints):
        return [profile.home / "training"]  # copies and unfinished ones are in home, too
    return [profile.home / "training", Path(checkpoints).expanduser().resolve()]


def _look_around(
    settings: RayTrainingSettings, folders: list[Path]
) -> tuple[list[dict[str, float]], list[tuple[str, str]]]:
    """What each living node has; and a text and a remedy for each that could not take part. Raises Unavailable."""
    ray = connect(settings)
    probes = [Probe(folder / f".seen-by-workers-{secrets.token_hex(8)}", secrets.token_hex(16)) for folder in folders]
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        for probe in probes:
            probe.file.parent.mkdir(parents=True, exist_ok=True)
            probe.file.write_text(probe.text)
        unfit = [found for node in nodes for found in _faults(ray, node, probes)]
        return [dict(node["Resources"]) for node in nodes], unfit
    finally:
        for probe in probes:
            probe.file.unlink(missing_ok=True)
        ray.shutdown()


def _faults(ray: Any, node: dict[str, Any], probes: list[Probe]) -> Iterator[tuple[str, str]]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    where = f"the Ray node {node['NodeManagerAddress']}"
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    look = ray.remote(seen_from_here).options(num_cpus=0, scheduling_strategy=there)
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
