import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.checklist import (
    Checklist,
    Question,
    UnreadableAnswer,
    UnusableChecklist,
    load_visionreward,
    read_answer,
    read_answers,
)
from tests.ml.shared_data import shared_data

SMALL = Checklist(
    name="small",
    version="1",
    questions=(
        Question("a1", 'Is "[[prompt]]" shown?', "alignment", "alignment", 2.0),
        Question("a2", "Is all of it shown?", "alignment", "alignment", 0.5),
        Question("q1", "Is it clear?", "quality", "clarity", 1.0),
        Question("s1", "Is it safe?", "safety", "safety", 0.0),
        Question("s2", "Is it harmless?", "safety", "safety", 0.0),
    ),
)


def test_score_is_the_weighted_sum_of_yes() -> None:
    answers: list[list[float]] = [[1, 1, 1, 0, 0], [0, 1, 0, 1, 1], [0.5, 0, 0.25, 1, 0]]
    assert SMALL.score(answers).tolist() == [3.5, 0.5, 1.25]


def test_dimensions_are_weighted_shares_and_weightless_ones_count_each_question_alike() -> None:
    shares = SMALL.by_dimension([[1, 0, 1, 1, 0]])
    assert list(shares) == ["alignment", "quality", "safety"]
    assert shares["alignment"][0] == pytest.approx(0.8)
    assert shares["quality"][0] == 1
    assert shares["safety"][0] == 0.5


@given(st.lists(st.lists(st.integers(0, 8).map(lambda n: n / 8), min_size=5, max_size=5), min_size=1, max_size=6))
def test_shares_stay_between_0_and_1_and_one_more_yes_never_lowers_the_score(
    answers: list[list[float]],
) -> None:
    array = np.array(answers)
    for shares in SMALL.by_dimension(array).values():
        assert ((shares >= 0) & (shares <= 1 + 1e-12)).all()
    better = array.copy()
    better[:, 1] = 1
    assert (SMALL.score(better) >= SMALL.score(array)).all()


@pytest.mark.parametrize("bad", [[[1, 0, 1, 1, 2]], [[1, 0, 1, 1, -0.1]], [[1, 0, 1, 1, float("nan")]]])
def test_values_that_are_no_answers_are_refused(bad: list[list[float]]) -> None:
    with pytest.raises(UnreadableAnswer, match="s2"):
        SMALL.score(bad)


def test_answers_as_text_and_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(UnreadableAnswer, match="booleans"):
        SMALL.score([["yes", "no", "yes", "yes", "no"]])
    with pytest.raises(ValueError, match=r"\(n, 5\)"):
        SMALL.score([[1, 0]])


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("No", False), (" YES. ", True), ('"no"', False)])
def test_yes_and_no_are_read_in_any_case(text: str, value: bool) -> None:
    assert read_answer(text) is value


@pytest.mark.parametrize("text", ["", "maybe", "yes and no", "none", "nope", "y", "1", "not yes"])
def test_other_answers_are_errors_and_never_a_silent_no(text: str) -> None:
    with pytest.raises(UnreadableAnswer):
        read_answer(text)


def test_an_unreadable_answer_in_a_list_is_named_by_its_place() -> None:
    assert read_answers(["yes", "no"]).tolist() == [True, False]
    with pytest.raises(UnreadableAnswer, match="Answer 2 of 3"):
        read_answers(["yes", "perhaps", "no"])


def test_the_query_takes_the_place_of_the_placeholder_as_it_is() -> None:
    assert SMALL.questions[0].ask(r"a \1 {cat} [[prompt]] ") == r'Is "a \1 {cat} [[prompt]] " shown?'


def test_json_round_trip_and_broken_json() -> None:
    assert Checklist.from_json(SMALL.to_json()) == SMALL
    content = json.loads(SMALL.to_json())
    del content["questions"][1]["dimension"]
    with pytest.raises(UnusableChecklist, match="dimension"):
        Checklist.from_json(json.dumps(content))
    content = json.loads(SMALL.to_json())
    content["questions"][0]["weight"] = "heavy"
    with pytest.raises(UnusableChecklist, match="heavy"):
        Checklist.from_json(json.dumps(content))
    with pytest.raises(UnusableChecklist, match="not JSON"):
        Checklist.from_json("{")
    content = json.loads(SMALL.to_json())
    content["questions"][0]["id"] = "a2"
    with pytest.raises(UnusableChecklist, match="twice: a2"):
        Checklist.from_json(json.dumps(content))


def visionreward() -> Checklist:
    folder = shared_data("visionreward")
    return load_visionreward(
        folder / "VisionReward_video_qa.txt",
        folder / "VisionReward_video_qa_select.txt",
        folder / "weight.json",
    )


def test_the_real_visionreward_files() -> None:
    checklist = visionreward()
    assert len(checklist) == 64
    assert Counter(question.dimension for question in checklist.questions) == {
        "alignment": 4,
        "composition": 2,
        "quality": 14,
        "fidelity": 9,
        "safety": 4,
        "stability": 12,
        "dynamic": 8,
        "physics": 4,
        "preservation": 7,
    }
    assert np.count_nonzero(checklist.weights) == 29
    assert checklist.weights.sum() == pytest.approx(6.277173, abs=1e-6)
    assert checklist.score(np.ones((1, 64)))[0] == pytest.approx(6.277173, abs=1e-6)
    assert checklist.score(np.zeros((1, 64)))[0] == 0
    # All "no" on the scale of VisionReward's own script, (2R - sum) / 29: the known sign of a broken parser.
    assert (2 * 0 - checklist.weights.sum()) / 29 == pytest.approx(-0.21645, abs=1e-5)
    by_id = {question.id: question for question in checklist.questions}
    assert by_id["alignment_4"].weight == pytest.approx(1.141818673357406)
    assert by_id["alignment_3"].weight == 0
    assert all(question.weight == 0 for question in checklist.questions if question.dimension == "safety")
    assert all(question.weight == 0 for question in checklist.questions if question.sub_dimension == "object_motion")
    assert "a red ball" in by_id["alignment_1"].ask("a red ball")
    assert Checklist.from_json(checklist.to_json()) == checklist


def test_visionreward_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = shared_data("visionreward")
    questions, select = folder / "VisionReward_video_qa.txt", folder / "VisionReward_video_qa_select.txt"
    weights = tmp_path / "weight.json"
    weights.write_text("[1, 2, 3]")
    with pytest.raises(UnusableChecklist, match="3 weights for the 29"):
        load_visionreward(questions, select, weights)
    with pytest.raises(UnusableChecklist, match="3 weights for the 64"):
        load_visionreward(questions, None, weights)
    weights.write_text('["1"]')
    with pytest.raises(UnusableChecklist, match="list of numbers"):
        load_visionreward(questions, select, weights)
    with pytest.raises(UnusableChecklist, match="holds 29 questions"):
        load_visionreward(select, select, folder / "weight.json")
    swapped = questions.read_text().splitlines()
    swapped[0], swapped[63] = swapped[63], swapped[0]
    other = tmp_path / "questions.txt"
    other.write_text("\n".join(swapped))
    with pytest.raises(UnusableChecklist, match="line 1: expected a question about alignment"):
        load_visionreward(other, select, folder / "weight.json")
    foreign = tmp_path / "select.txt"
    foreign.write_text("\n".join([*select.read_text().splitlines()[:28], "Is it art?"]))
    with pytest.raises(UnusableChecklist, match="Is it art"):
        load_visionreward(questions, foreign, folder / "weight.json")
    with pytest.raises(UnusableChecklist, match="Cannot read"):
        load_visionreward(tmp_path / "none.txt", select, folder / "weight.json")
