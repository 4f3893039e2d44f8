"""Trainings on a Ray cluster against the memory of its nodes. Ray is not needed."""

import json
from pathlib import Path

import pytest

from resources.doctor.findings import Finding, Level
from resources.doctor.memory import ModelShape
from resources.doctor.memory_checks import check_training_memory
from resources.doctor.needs import trained_key
from resources.doctor.sizes import GIB
from resources.doctor.weights import Weights
from resources.ray_worker import NodeMemory, memory_from_here
from resources.settings import load_profile

SEVEN_BILLION = ModelShape(
    parameters=7_600_000_000,
    layers=28,
    hidden=3584,
    intermediate=18944,
    heads=28,
    key_value_heads=4,
    head_size=128,
    window=32768,
)
SMALL = ModelShape(
    parameters=100_000_000,
    layers=4,
    hidden=256,
    intermediate=1024,
    heads=4,
    key_value_heads=4,
    head_size=64,
    window=2048,
)


def found(
    monkeypatch: pytest.MonkeyPatch, shape: ModelShape, nodes: list[NodeMemory], accelerate: str = "ddp", **ray: int
) -> list[Finding]:
    """The findings about SFT."""
    monkeypatch.setenv("VPO_TRAINER", json.dumps({"launcher": "ray", "accelerate": accelerate, "ray": ray}))
    monkeypatch.setenv("VPO_SFT__LORA", "null")
    profile = load_profile("local")
    findings = check_training_memory(profile, {trained_key(profile): Weights({}, shape)}, nodes)
    return [finding for finding in findings if finding.subject == "sft"]


def test_the_gpu_with_the_least_free_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    large, busy = NodeMemory("10.0.0.1", 500 * GIB, (80 * GIB, 80 * GIB)), NodeMemory("10.0.0.2", 500 * GIB, (9 * GIB,))
    (fault,) = found(monkeypatch, SEVEN_BILLION, [large, busy], workers=2, gpus_per_worker=1)
    assert fault.level is Level.FAULT
    assert "of 9.0 GiB, what is free on a GPU of the node 10.0.0.2" in fault.text
    assert "trainer.accelerate: fsdp" in fault.remedy
    (fits,) = found(monkeypatch, SEVEN_BILLION, [large] * 8, "zero3", workers=8, gpus_per_worker=1)
    assert fits.level is Level.OK  # an eighth of it on each
    assert not found(monkeypatch, SEVEN_BILLION, [NodeMemory("silent", GIB)], workers=2, gpus_per_worker=1)


def test_workers_on_cpus_share_the_main_memory_of_their_node(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = NodeMemory("10.0.0.1", 4 * GIB), NodeMemory("10.0.0.2", 64 * GIB)
    (alone,) = found(monkeypatch, SMALL, [two], workers=8)
    assert alone.level is Level.OK
    (shared,) = found(monkeypatch, SMALL, [one, two], workers=8)
    assert shared.level is Level.FAULT
    assert "of 4.0 GiB, main memory of the node 10.0.0.1" in shared.text
    assert not found(monkeypatch, SMALL, [], workers=8)


def test_a_node_tells_its_memory_and_that_of_gpus_which_ray_hides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    bare = memory_from_here("10.0.0.1")
    assert bare.main > GIB and bare.free_on_gpus == ()
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 81079\necho 512\n")
    tool.chmod(0o755)
    assert memory_from_here("10.0.0.1").free_on_gpus == (81079 * 2**20, 512 * 2**20)
    tool.write_text("#!/bin/sh\necho '[N/A]'\n")
    assert memory_from_here("10.0.0.1").free_on_gpus == ()
