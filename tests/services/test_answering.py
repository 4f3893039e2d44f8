"""Batches of clips on their way through a model: bad ones fail alone, and batches shrink with memory."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from services.visionreward.answering import Answering, AskedClip
from services.visionreward.interface import Frames, Said, Start
from tests.services.clips import mp4, plain_clip
from tests.services.tiny_models import ColorAnswers, ColorScores

RED, BLUE = (mp4(plain_clip(color), 4) for color in ((220, 20, 30), (20, 30, 220)))
QUESTIONS = ("Is it red?", "Is it green?", "Is it blue?", "Is it red or green?", "Is it a colour?")


def loaded(kind: type[Any], folder: Path, **behaviour: Any) -> Any:
    (folder / "behaviour.json").write_text(json.dumps(behaviour))
    model = kind(Start(str(folder), None, "cpu", False))
    model.load()
    return model


def words(result: dict[str, Any]) -> list[str]:
    return [answer["answer"] for answer in result["answers"]]


def test_features_are_made_once_a_clip_and_questions_go_in_batches(tmp_path: Path) -> None:
    model = loaded(ColorAnswers, tmp_path)
    clips = [AskedClip(content, "", QUESTIONS) for content in (RED, BLUE)]
    first, second = Answering(model, 2).results(clips)
    assert words(first) == ["yes", "no", "no", "yes", "no"]
    assert words(second) == ["no", "no", "yes", "no", "no"]
    assert len(model.notes.calls("encode")) == 2
    assert [len(call["questions"]) for call in model.notes.calls("answer")] == [2, 2, 1, 2, 2, 1]
    assert [call["shape"] for call in model.notes.calls("encode")] == [[3, 32, 32, 3]] * 2  # 1.75 s: seconds 0, 1, 2


def test_a_bad_clip_fails_alone(tmp_path: Path) -> None:
    model = loaded(ColorAnswers, tmp_path)
    clips = [
        AskedClip(RED, "", QUESTIONS),
        AskedClip(b"no video", "", QUESTIONS),
        AskedClip(RED, "", ("Is it red?", "Is it perhaps red?")),
        AskedClip(BLUE, "", QUESTIONS),
    ]
    good, unreadable, unsure, also_good = Answering(model, 16).results(clips)
    assert words(good)[0] == "yes"
    assert words(also_good)[0] == "no"
    assert unreadable["error"].startswith("the video cannot be read: ")
    assert unsure == {"error": "question 2 ('Is it perhaps red?') was answered 'Perhaps', not yes or no"}


@pytest.mark.parametrize(("most", "sizes"), [(3, [5, 2, 2, 1]), (1, [5, 2, 1, 1, 1, 1, 1]), (4, [5, 2, 2, 1])])
def test_batches_are_halved_when_memory_runs_out_and_stay_so(tmp_path: Path, most: int, sizes: list[int]) -> None:
    model = loaded(ColorAnswers, tmp_path, most=most)
    answering = Answering(model, 8)
    (result,) = answering.results([AskedClip(RED, "", QUESTIONS)])
    assert words(result) == ["yes", "no", "no", "yes", "no"]
    assert [len(call["questions"]) for call in model.notes.calls("answer")] == sizes
    failures = sum(size > most for size in sizes)
    assert len(model.notes.calls("free_memory")) == failures
    answering.results([AskedClip(RED, "", QUESTIONS)])
    assert max(len(call["questions"]) for call in model.notes.calls("answer")[len(sizes) :]) <= most


def test_a_question_too_large_by_itself_fails_its_clip(tmp_path: Path) -> None:
    model = loaded(ColorAnswers, tmp_path, most=0)
    (result,) = Answering(model, 8).results([AskedClip(RED, "", QUESTIONS)])
    assert result == {"error": "the device has too little memory for this clip, even alone"}


class Forgetful(ColorAnswers):
    """Runs out of memory the first time that it sees a clip, as CUDA says it, and breaks on the third."""

    seen = 0

    def encode(self, frames: Frames) -> Any:
        self.seen += 1
        if self.seen == 1:
            raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")
        if self.seen == 3:
            raise RuntimeError("broken\nin two lines")
        return super().encode(frames)

    def answer(self, features: Any, questions: Sequence[str]) -> list[Said]:
        return super().answer(features, questions)[: 4 if self.seen == 4 else None]


def test_encoding_is_tried_again_with_free_memory_and_other_errors_are_the_clips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = loaded(Forgetful, tmp_path)
    good, broken, short, also_good = Answering(model, 8).results([AskedClip(RED, "", QUESTIONS)] * 4)
    assert words(good) == words(also_good) == ["yes", "no", "no", "yes", "no"]
    assert broken == {"error": "the model failed on it (RuntimeError: broken in two lines)"}
    assert "4 results for 5" in short["error"]
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("probability", [1.5, -0.1, float("nan")])
def test_probabilities_that_are_none_fail_the_clip(tmp_path: Path, probability: float) -> None:
    model = loaded(ColorAnswers, tmp_path)
    model.answer = lambda features, questions: [Said("yes", probability)] * len(questions)
    (result,) = Answering(model, 8).results([AskedClip(RED, "", QUESTIONS)])
    assert "has the probability" in result["error"]


def test_scores_come_in_batches_in_order(tmp_path: Path) -> None:
    model = loaded(ColorScores, tmp_path, most=2)
    clips = [AskedClip(content, "red") for content in (RED, BLUE, RED, BLUE, RED)]
    results = Answering(model, 4).results(clips)
    redness = [result["scores"]["redness"] for result in results]
    assert [value > 0.5 for value in redness] == [True, False, True, False, True]
    assert [len(call["queries"]) for call in model.notes.calls("score")] == [4, 2, 2, 1]
    assert all(list(result["scores"]) == ["brightness", "redness"] for result in results)


def test_a_clip_that_breaks_the_scoring_fails_alone(tmp_path: Path) -> None:
    model = loaded(ColorScores, tmp_path)
    clips = [AskedClip(RED, "red"), AskedClip(RED, "explode"), AskedClip(b"", "red"), AskedClip(BLUE, "red")]
    good, bad, unreadable, also_good = Answering(model, 4).results(clips)
    assert good["scores"]["redness"] > 0.5 > 0 > also_good["scores"]["redness"]
    assert bad == {"error": "the model failed on it (RuntimeError: what a query)"}
    assert unreadable["error"].startswith("the video cannot be read")


@pytest.mark.parametrize("given", [{}, {"brightness": 1.0}, {"brightness": 1.0, "redness": float("inf")}])
def test_missing_and_infinite_scores_fail_the_clip(tmp_path: Path, given: dict[str, float]) -> None:
    model = loaded(ColorScores, tmp_path)
    model.score = lambda clips, queries: [given] * len(clips)
    (result,) = Answering(model, 8).results([AskedClip(RED, "red")])
    assert "score" in result["error"]
