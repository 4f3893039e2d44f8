"""Backends that users write: mistakes in them are told as theirs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resources.backend_settings import OwnJudgeSettings, OwnVideoGeneratorSettings, OwnVideoRewardSettings
from resources.doctor.files import check_files
from resources.judge import Judge, build_judge
from resources.outcome import Failed, Unavailable
from resources.settings import SettingsError, load_profile
from resources.video_generator import VideoGenerator, build_video_generator
from resources.video_reward import build_video_reward

GENERATOR = """
import numpy as np
class Made:
    closed = 0
    def identity(self): return {"version": 1}
    def generate(self, prompts, seeds): return RETURNED
    def close(self): Made.closed += 1
def make(**arguments): return Made()
"""


def generator(folder: Path, returned: str, text: str = GENERATOR, **arguments: Any) -> VideoGenerator:
    (folder / "mine.py").write_text(text.replace("RETURNED", returned))
    return build_video_generator(OwnVideoGeneratorSettings(make=f"{folder}/mine.py:make", arguments=arguments, fps=3))


def test_clips_that_are_none_are_failed_rows(tmp_path: Path) -> None:
    good = "np.zeros((2, 4, 4, 3), np.uint8)"
    returned = f"[{good}, {good}.astype(float), {good}[0], None, np.zeros((0, 4, 4, 3), np.uint8)]"
    made = generator(tmp_path, returned)
    first, *others = made.generate(["a"] * 5, [1] * 5)
    assert isinstance(first, np.ndarray) and made.fps == 3
    assert [type(other) for other in others] == [Failed] * 4
    assert isinstance(others[0], Failed)
    assert "must give clips of uint8 (frames, height, width, 3), and gave float64 (2, 4, 4, 3)" in others[0].reason


@pytest.mark.parametrize(("returned", "said"), [("[]", "a list of 1, and gave 0"), ("None", "gave a NoneType")])
def test_another_number_of_clips_is_an_error(tmp_path: Path, returned: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        generator(tmp_path, returned).generate(["a"], [1])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def made(): pass", "the file has no function or class make"),
        ("x = 1\nraise RuntimeError('boo')", r"cannot be loaded: RuntimeError: boo \(line 2\)"),
        ("def broken(:", "cannot be loaded: SyntaxError"),
        ("def make(): return 3", "makes a int, which has no identity, no close, no generate"),
        ("def make(width): return 3", "does not work with its arguments: TypeError"),
        (GENERATOR.replace('{"version": 1}', "object()"), "must give plain values"),
    ],
)
def test_a_file_that_cannot_be_used_stops_the_work(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(Unavailable, match=said):
        generator(tmp_path, "[]", text).identity()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    made = build_video_generator(OwnVideoGeneratorSettings(make=f"{tmp_path}/none.py:make"))
    with pytest.raises(Unavailable, match=r"there is no file .*none\.py"):
        made.generate(["a"], [1])


def test_identity_changes_with_file_and_arguments(tmp_path: Path) -> None:
    one = generator(tmp_path, "[]").identity()
    assert generator(tmp_path, "[]").identity() == one
    assert generator(tmp_path, "[]", width=3).identity() != one
    assert generator(tmp_path, "[ ]").identity() != one


def test_it_is_made_when_needed_and_again_after_close(tmp_path: Path) -> None:
    made = generator(tmp_path, "[np.zeros((2, 4, 4, 3), np.uint8)]")
    made.close()
    for _ in range(2):
        assert len(made.generate(["a"], [1])) == 1
        made.close()


def judge(folder: Path, critique: str) -> Judge:
    (folder / "judge.py").write_text(
        "from ml.rules import Critique\n"
        "class Mine:\n"
        "    def identity(self): return {}\n"
        f"    def critique(self, queries, prompts): return [{critique}]\n"
        "    def close(self): pass\n"
    )
    return build_judge(OwnJudgeSettings(make=f"{folder}/judge.py:Mine"), folder)


def test_a_critique_that_contradicts_itself_is_a_failed_row(tmp_path: Path) -> None:
    (fine,) = judge(tmp_path, "Critique(True, True, True, 'aligned', 'good', None)").critique(["q"], ["p"])
    assert not isinstance(fine, Failed)
    for wrong in ("Critique(True, False, True, 'aligned', '', None)", "Critique(True, True, True, 'unsafe', '', None)"):
        (found,) = judge(tmp_path, wrong).critique(["q"], ["p"])
        assert isinstance(found, Failed) and "whose three answers say otherwise" in found.reason
    (found,) = judge(tmp_path, "'fine'").critique(["q"], ["p"])
    assert isinstance(found, Failed) and "must give a Critique each, and gave a str" in found.reason


def test_answers_to_other_questions_are_a_failed_row(tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(
        "from ml.checklist import Checklist, Question\n"
        "from resources.video_reward import Answer\n"
        "class Mine:\n"
        "    questions = tuple(Question(name, '?', 'd', 's', 1.0) for name in 'ab')\n"
        "    checklist = Checklist('mine', '1', questions)\n"
        "    def identity(self): return {}\n"
        "    def answer(self, queries, clips):\n"
        "        a, b = Answer('a', True, 1.0), Answer('b', False, 0.0)\n"
        "        return [[a, b], [b, a], [a], 3]\n"
        "    def close(self): pass\n"
    )
    reward = build_video_reward(OwnVideoRewardSettings(make=f"{tmp_path}/reward.py:Mine"))
    assert reward.identity()["checklist"] == "mine"
    good, *bad = reward.answer(["q"] * 4, [np.zeros((2, 4, 4, 3), np.uint8)] * 4)
    assert not isinstance(good, Failed)
    assert [type(one) for one in bad] == [Failed] * 3


def test_settings_and_doctor_name_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPO_HOME", str(tmp_path))
    file = tmp_path / "mine.yaml"
    file.write_text("extends: local\njudge: {backend: python, make: judge}\n")
    with pytest.raises(SettingsError, match=r"judge\.make = 'judge': must be a file and what makes the backend in it"):
        load_profile(str(file))
    file.write_text(f"extends: local\njudge: {{backend: python, make: {tmp_path}/judge.py:make}}\n")
    (found,) = [one for one in check_files(load_profile(str(file))) if one.subject == "judge.make"]
    assert "there is no file" in found.text
