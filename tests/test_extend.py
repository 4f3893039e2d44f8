"""The pages on bringing one's own parts: every example on them, run as it stands."""

import csv
import os
import re
import runpy
import sys
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, DagsterInstance

from resources.judge import Judge
from resources.settings import load_profile
from resources.video_generator import VideoGenerator
from resources.video_reward import VideoReward
from tests.assets.conftest import queries_of, write_queries
from tests.assets.fakes import FakePlatform
from vpo_assets.definitions import EVERYTHING, build_defs
from vpo_assets.platform import Platform

PAGES = Path(__file__).parent.parent / "docs" / "extend"
BLOCK = re.compile(r'^```\w+ title="([\w.]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
TRUNK = ("raw_prompts", "queries", "drafts", "draft_critiques")
TO_VIDEOS = (*TRUNK, "sft_dataset", "sft_checkpoint")

pytestmark = pytest.mark.slow


class Partly(FakePlatform):
    """Stand-ins for what writes and what trains; judge, video model and reward are those of the profile."""

    @cached_property
    def video_generators(self) -> Mapping[str, VideoGenerator]:
        real = Platform.video_generators.func(self)  # type: ignore[attr-defined]
        return {name: real[name] if name != "shapes" else self.camera for name in real}

    @cached_property
    def video_rewards(self) -> Mapping[str, VideoReward]:
        return Platform.video_rewards.func(self)  # type: ignore[attr-defined,no-any-return]

    @cached_property
    def judge(self) -> Judge:
        return Platform.judge.func(self)  # type: ignore[attr-defined,no-any-return]


Run = Callable[..., Platform]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Materializes assets with a page's profile, in a folder with all of the page's files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VPO_HOME", str(tmp_path / "home"))

    def materialize(*assets: str) -> Platform:
        profile = load_profile("mine.yaml")
        platform = Partly(profile)
        job = build_defs(profile, {"platform": platform}).resolve_job_def(EVERYTHING)
        quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
        selection = [AssetKey.from_user_string(asset) for asset in assets]
        with DagsterInstance.ephemeral() as instance:
            result = job.execute_in_process(instance=instance, asset_selection=selection, run_config=quiet)
        assert result.success
        return platform

    return materialize


def lay_out(page: str, folder: Path) -> set[str]:
    """The page's files, in a folder."""
    found = dict(BLOCK.findall((PAGES / page).read_text(encoding="utf-8")))
    for name, text in found.items():
        (folder / name).write_text(text, encoding="utf-8")
    return set(found)


def bundled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few queries instead of all that are bundled."""
    write_queries(folder / "queries.jsonl", queries_of(24))
    monkeypatch.setenv("VPO_QUERIES__FILES", '["queries.jsonl"]')


def rows(platform: Platform, sql: str) -> list[dict[str, Any]]:
    return platform.lake.query(sql).to_pylist()


def test_a_video_model(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lay_out("video_model.md", tmp_path) == {"my_video_model.py", "mine.yaml"}
    bundled(tmp_path, monkeypatch)
    made = ("cards/candidates", "cards/candidate_critiques", "cards/videos", "cards/video_rewards")
    platform = run(*TO_VIDEOS, *made)
    found = rows(platform, "SELECT count(*) AS n, min(width) AS w, min(frames) AS f FROM lake.cards.videos")
    assert found[0]["n"] > 0 and (found[0]["w"], found[0]["f"]) == (64, 4)
    assert rows(platform, "SELECT count(*) AS n FROM lake.cards.video_rewards") == [{"n": found[0]["n"]}]
    # A file that was changed makes other videos; a second look at the same one makes none.
    before = {row["recipe"] for row in rows(platform, "SELECT recipe FROM lake.cards.videos")}
    assert {row["recipe"] for row in rows(run("cards/videos"), "SELECT recipe FROM lake.cards.videos")} == before
    (tmp_path / "my_video_model.py").open("a").write("\n# another version\n")
    after = {row["recipe"] for row in rows(run("cards/videos"), "SELECT recipe FROM lake.cards.videos")}
    assert len(before) == len(after) == 1 and before != after


def test_a_judge(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lay_out("judge.md", tmp_path) == {"my_judge.py", "mine.yaml"}
    things = ("rocket", "robot", "kettle", "bicycle", "piano", "lantern", "balloon", "tractor")
    branded_queries = [f"an acme {thing} drifts past {place}" for thing in things for place in ("dunes", "towers")]
    write_queries(tmp_path / "queries.jsonl", [*queries_of(24), *branded_queries])
    monkeypatch.setenv("VPO_QUERIES__FILES", '["queries.jsonl"]')
    monkeypatch.setenv("VPO_QUERIES__CURATION__TEST_SHARE", "0")
    monkeypatch.setenv("VPO_QUERIES__CURATION__DPO_SHARE", "0.01")
    monkeypatch.setenv("VPO_QUERIES__CURATION__SFT_SHARE", "0.99")
    platform = run(*TRUNK)
    branded = rows(platform, "SELECT critique, aligned, refined FROM lake.draft_critiques WHERE critique LIKE 'names%'")
    others = rows(platform, "SELECT count(*) AS n FROM lake.draft_critiques WHERE aligned")
    assert branded and others[0]["n"] > 0
    assert all(not row["aligned"] and row["refined"] for row in branded)


def test_a_reward(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lay_out("reward.md", tmp_path) == {"my_reward.py", "mine.yaml"}
    bundled(tmp_path, monkeypatch)
    made = ("shapes/candidates", "shapes/candidate_critiques", "shapes/videos", "shapes/video_rewards")
    platform = run(*TO_VIDEOS, *made)
    scores = rows(platform, "SELECT score, answers FROM lake.shapes.video_rewards")
    assert scores and all(0 <= row["score"] <= 1 for row in scores)
    assert len({row["score"] for row in scores}) > 1
    assert [answer["question"] for answer in scores[0]["answers"]] == ["moves", "bright"]


def test_queries_from_files_and_from_a_program(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lay_out("queries.md", tmp_path) == {"my_source.py", "mine.yaml"}
    (tmp_path / "logs").mkdir()
    with (tmp_path / "logs" / "may.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["when", "wish"], ["1", "a red kite over dunes"], ["2", "an owl blinks slowly"]])
    monkeypatch.setattr(sys, "argv", ["my_source.py", str(tmp_path / "home" / "inbox")])
    runpy.run_path("my_source.py", run_name="__main__")
    long_ago = time.time() - 60  # a file is taken when it has been left alone for a while
    os.utime(tmp_path / "home" / "inbox" / "monday.jsonl", (long_ago, long_ago))
    platform = run("raw_prompts", "queries")
    assert {row["text"] for row in rows(platform, "SELECT text FROM lake.raw_prompts")} == {
        "a red kite over dunes",
        "an owl blinks slowly",
        "a green hoop rolls uphill",
        "two cranes over a frozen lake",
    }
