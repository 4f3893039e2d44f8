"""The package vbench as a scorer: the service's own file, run by an interpreter with a stand-in for the package."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from resources import vbench_scorer
from resources.outcome import Failed, Unavailable
from resources.settings import EvaluationSettings
from resources.vbench_scorer import VbenchPrompt, VbenchScorer
from resources.vbench_settings import VbenchSettings
from resources.video_generator import Clip
from tests.services.stand_in_vbench import stand_in_interpreter

RIDING = VbenchPrompt("human_action", "A person is riding a bike")
ALLEY = VbenchPrompt("scene", "alley")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_in_interpreter(tmp_path_factory.mktemp("vbench"))


def scorer(python: Path, **changes: Any) -> VbenchScorer:
    return VbenchScorer(VbenchSettings(python=python, **changes), fps=8.0)


def gray(brightness: int) -> Clip:
    return np.full((4, 16, 16, 3), brightness, dtype=np.uint8)


def test_the_prompts_are_those_of_the_package(python: Path) -> None:
    prompts = scorer(python, prompts_per_dimension=1).prompts()
    assert [one.dimension for one in prompts] == ["human_action", "scene", "multiple_objects", "appearance_style"]
    assert prompts[0] == RIDING
    few = scorer(python, dimensions=("human_action",)).prompts()
    assert [one.prompt for one in few] == ["A person is riding a bike", "A person is marching"]


def test_every_video_has_the_score_of_its_own_prompt_and_dimension(python: Path) -> None:
    asked = [ALLEY, RIDING, ALLEY, RIDING, VbenchPrompt("appearance_style", "A beach, Van Gogh style")]
    scores = scorer(python).score(asked, [gray(level) for level in (51, 200, 102, 20, 153)])
    assert scores == [
        pytest.approx(0.2, abs=0.02),
        1.0,
        pytest.approx(0.4, abs=0.02),
        0.0,
        pytest.approx(0.6, abs=0.02),
    ]


def test_a_video_without_a_score_fails_alone(python: Path) -> None:
    asked = [ALLEY, VbenchPrompt("scene", "no prompt of theirs"), VbenchPrompt("scene", "a/../escape"), ALLEY]
    clips = [gray(51), gray(51), gray(51), np.zeros((1, 1, 1, 3), dtype=np.uint8)]
    good, unknown, unsafe, tiny = scorer(python).score(asked, clips)
    assert good == pytest.approx(0.2, abs=0.02)
    assert isinstance(unknown, Failed) and "'no prompt of theirs' is no prompt of scene" in unknown.reason
    assert isinstance(unsafe, Failed) and "cannot be a file's name" in unsafe.reason
    assert isinstance(tiny, Failed)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [("skipping", "vbench gave no result for it"), ("nan", "no score from -1 to 1")],
)
def test_a_result_that_is_missing_or_no_number_fails_its_video(
    python: Path, behaviour: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VBENCH_CACHE_DIR", behaviour)
    first, second = scorer(python).score([ALLEY, ALLEY], [gray(51), gray(102)])
    assert isinstance(first, Failed) and reason in first.reason
    assert second == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (
            "without_weights",
            "scene: its weights cannot be fetched: put https://example.org/weights.pth into /cache/umt",
        ),
        ("broken", "scene: vbench failed: RuntimeError: CUDA out of memory"),
    ],
)
def test_what_no_video_is_to_blame_for_stops_the_work(
    python: Path, behaviour: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VBENCH_CACHE_DIR", behaviour)
    with pytest.raises(Unavailable, match=message):
        scorer(python).score([ALLEY], [gray(51)])


def test_the_service_gets_no_keys(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, str]] = []
    run = subprocess.run

    def watched(command: Any, **options: Any) -> Any:
        given.append(options["env"])
        return run(command, **options)

    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(vbench_scorer.subprocess, "run", watched)
    scorer(python).prompts()
    assert given[0]["CUDA_VISIBLE_DEVICES"] == "0"
    assert "OPENAI_API_KEY" not in given[0]


def test_a_missing_interpreter_package_or_version_is_told(python: Path, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"vbench\.python = '/nowhere/python': cannot be run"):
        scorer(Path("/nowhere/python")).prompts()
    without = stand_in_interpreter(tmp_path / "without", installed=False)
    with pytest.raises(Unavailable, match=r"has no package vbench: install services/vbench/requirements\.in"):
        scorer(without).prompts()
    with pytest.raises(Unavailable, match=r"has vbench 0\.1\.5, and was asked for 0\.1\.6"):
        scorer(python, version="0.1.6").score([ALLEY], [gray(51)])
    with pytest.raises(Unavailable, match=r"took longer than 0\.001 seconds"):
        scorer(python, timeout=0.001).score([ALLEY], [gray(51)])


def test_a_file_of_prompts_that_is_none_is_told(python: Path, tmp_path: Path) -> None:
    file = tmp_path / "info.json"
    with pytest.raises(Unavailable, match=r"full_info = .*cannot be read"):
        scorer(python, full_info=file).prompts()
    file.write_text('[{"prompt": "alley"}]')
    with pytest.raises(Unavailable, match=r"is no VBench_full_info\.json: 0\.prompt_en"):
        scorer(python, full_info=file).prompts()
    file.write_text('[{"prompt_en": "alley", "dimension": ["scene"]}]')
    with pytest.raises(Unavailable, match="has no prompt of the dimension human_action"):
        scorer(python, full_info=file).prompts()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "ended without an answer; it said: Killed"),
        ("no JSON", "an answer that cannot be read"),
        ({"protocol": 2, "package": "0.1.5"}, "speaks protocol 2, and 1 is needed"),
        ({"protocol": 1, "package": "0.1.4"}, "answers with vbench 0.1.4, and version is 0.1.5"),
        ({"protocol": 1, "package": "0.1.5", "results": [{"id": "0", "score": "high"}]}, "results.0.score"),
        ({"protocol": 1, "package": "0.1.5", "results": [{"id": "0", "score": 7.0}]}, "results.0.score"),
        ({"protocol": 1, "package": "0.1.5", "results": [{"id": "0", "score": 0.5}] * 2}, "two results for one video"),
    ],
)
def test_an_answer_that_keeps_to_no_protocol_is_refused(answer: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=message):
        answering(tmp_path, answer).score([ALLEY], [gray(51)])


def test_fewer_results_than_videos_fail_those_without(tmp_path: Path) -> None:
    given = {"protocol": 1, "package": "0.1.5", "results": [{"id": "1", "score": 0.5}]}
    assert answering(tmp_path, given).score([ALLEY, ALLEY], [gray(51), gray(51)]) == [
        Failed("vbench gave no result for this video"),
        0.5,
    ]


def answering(folder: Path, answer: Any) -> VbenchScorer:
    """A scorer whose interpreter gives this answer, whatever it is asked; None: it gives none."""
    said = folder / "said"
    said.write_text(answer if isinstance(answer, str) else json.dumps(answer))
    python = folder / "python"
    copy = "echo Killed" if answer is None else f'cp "{said}" "$5"'
    python.write_text(f"#!/bin/sh\n{copy}\n")
    python.chmod(0o755)
    return scorer(python, full_info=folder / "any.json")


def test_settings_say_what_is_allowed(python: Path) -> None:
    with pytest.raises(ValidationError, match="scene is named twice"):
        VbenchSettings(python=python, dimensions=("scene", "scene"))
    with pytest.raises(ValidationError, match="human_action"):
        VbenchSettings(python=python, dimensions=("color",))  # type: ignore[arg-type]
    with pytest.raises(
        ValidationError, match=r"vbench\.methods: 'gpt' must be one of original, few_shot, sft, vpo, mine"
    ):
        EvaluationSettings(others={"mine": "shapes"}, vbench=VbenchSettings(python=python, methods=("gpt",)))


REAL = os.environ.get("VBENCH_PYTHON", "")


@pytest.mark.skipif(not REAL, reason="VBENCH_PYTHON names no interpreter of an environment that has vbench")
@pytest.mark.slow
def test_the_real_package_knows_its_prompts() -> None:
    prompts = scorer(Path(REAL)).prompts()
    counts = {name: sum(one.dimension == name for one in prompts) for name in {one.dimension for one in prompts}}
    assert counts == {"human_action": 100, "scene": 86, "multiple_objects": 82, "appearance_style": 90}
