"""Drafts and candidates by vLLM in Ray's workers: two engines side by side, each loaded once."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.assets.conftest import queries_of, write_queries
from tests.vllm import NEEDS_VLLM
from tests.vllm.conftest import vllm_settings
from tests.vllm.test_steps import POLICY, RealWorld, commit_policy

pytestmark = [
    *NEEDS_VLLM,
    pytest.mark.long,
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed beside vLLM (the extra `ray`)"),
]

DRAFTS = 16


@pytest.fixture
def world(smollm2: Path, tmp_path: Path) -> Iterator[RealWorld]:
    write_queries(tmp_path / "queries.jsonl", queries_of(60))
    world = RealWorld(
        tmp_path,
        language_model=vllm_settings(model=str(smollm2)).model_dump(mode="json"),
        drafts__limit=DRAFTS,
        refresh={"text_batch": 4},
        compute={"backend": "ray", "workers": 2, "local_cpus": 4, "start_seconds": 300},
        targets__shapes__candidates={
            "policy": POLICY,
            "per_query": 2,
            "limit": 8,
            "sampling": {"temperature": 0.9, "top_p": 0.9, "max_new_tokens": 32},
        },
    )
    commit_policy(world, smollm2)
    yield world
    import ray

    ray.shutdown()


def test_two_workers_write_every_row_once_with_an_engine_each(world: RealWorld) -> None:
    world.materialize("raw_prompts", "queries", "drafts", "shapes/candidates")
    drafts = world.rows('SELECT * FROM "lake".main.drafts')
    assert len({row["input_id"] for row in drafts}) == len(drafts) == DRAFTS
    candidates = world.rows('SELECT * FROM "lake".shapes.candidates')
    assert len({row["input_id"] for row in candidates}) == len(candidates) == 16
    assert {row["policy"] for row in candidates} == {POLICY}
    assert all(row["prompt"] and row["new_tokens"] > 0 for row in (*drafts, *candidates))
    assert not _engine_here(), "the run itself loads no model"


def _engine_here() -> bool:
    import psutil

    children = psutil.Process(os.getpid()).children()
    return any("EngineCore" in " ".join(child.cmdline()) for child in children)
