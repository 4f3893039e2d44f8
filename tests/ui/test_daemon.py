"""A real daemon: a file is put into the inbox, and its queries come out of the trunk as training data."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ml.shapes.queries import write_query
from storage.lake import Lake
from storage.tables import RAW_PROMPTS, SFT_DATASET
from tests.conftest import vpo_process
from tests.ui.serving import Served, serving

pytestmark = pytest.mark.slow
FIRST = 12
ADDED = 12
PATIENCE = 240.0  # seconds
DATASETS = ("raw_prompts", "queries", "drafts", "draft_critiques", "sft_dataset")


def wait_for(what: Callable[[], bool], why: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {why}"
        time.sleep(1)


def count(served: Served, sql: str) -> int:
    with Lake(served.home / "lake") as lake:
        return int(lake.query(sql)["n"][0].as_py())


def learned_from(served: Served, source: str) -> int:
    """Examples of the SFT set whose query came from this file."""
    return count(
        served,
        f"SELECT count(*) AS n FROM {SFT_DATASET.qualified} JOIN {RAW_PROMPTS.qualified} USING (query_id) "
        f"WHERE source = '{source}'",
    )


def test_a_file_in_the_inbox_becomes_training_data(tmp_path: Path) -> None:
    settings = {"VPO_AUTOMATION__INBOX_SECONDS": "5", "VPO_AUTOMATION__SWEEP_SECONDS": "5"}
    with serving(tmp_path, FIRST, **settings) as served:
        made = vpo_process(
            *("materialize", *DATASETS), VPO_HOME=str(served.home), VPO_QUERIES__FILES=f'["{served.queries}"]'
        )
        assert made.returncode == 0, made.stderr
        inbox = served.home / "inbox"
        inbox.mkdir(parents=True, exist_ok=True)
        wishes = "".join(f"{write_query(np.random.default_rng(seed))}\n" for seed in range(1000, 1000 + ADDED))
        (inbox / "wishes.txt").write_text(wishes)
        wait_for(lambda: learned_from(served, "wishes.txt") >= 1, "queries of the inbox in the SFT set")
        assert count(served, f"SELECT count(*) AS n FROM {RAW_PROMPTS.qualified}") == FIRST + ADDED
        runs = Path(served.home / "checkpoints")
        assert not list(runs.glob("*")), "training is not to start by itself"
