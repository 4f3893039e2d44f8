"""Checklists of other shapes than VisionReward's: questions in groups, levels of dominance, named scores, and what
is put into questions and read from answers.
"""

import json
import math
from collections.abc import Sequence
from itertools import permutations
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.checklist import (
    LONGEST_QUERY,
    Checklist,
    Question,
    Scale,
    UnreadableAnswer,
    UnusableChecklist,
    answers_schema,
    as_quoted,
    checklist_of_scores,
    probability_of_yes,
    read_numbered_answers,
    read_token,
)
from ml.preference import PairSettings, PromptRewards, average_rewards, select_pairs

# Three dimensions of 1, 2 and 4 questions, one sub-dimension across its dimension, weightless ones, a lone one.
UNEVEN = Checklist(
    "uneven",
    "1",
    (
        Question("lone", "?", "lone", "lone", 4.0),
        Question("pair_1", "?", "pair", "pair_a", 1.0),
        Question("pair_2", "?", "pair", "pair_b", 3.0),
        Question("four_1", "?", "four", "four_a", 0.0),
        Question("four_2", "?", "four", "four_a", 0.0),
        Question("four_3", "?", "four", "four_b", 0.5),
        Question("four_4", "?", "four", "four_b", 0.5),
    ),
)
SCORES = checklist_of_scores(
    "scores",
    "1",
    (Scale("visual", -10, 10, 1.0, "visual quality"), Scale("motion", 0, 5, 2.0), Scale("text", 1, 5, 0.0)),
)
ONE = Checklist("one", "1", (Question("only", "?", "only", "only", 1.0),))

Level = Literal["question", "sub_dimension", "dimension", "none"]


def chosen(
    checklist: Checklist, answers: Sequence[Sequence[float]], level: Level, margin: float
) -> set[tuple[int, int]]:
    """Which of some candidates is preferred to which, by asking of two at a time."""
    found = set()
    for better, worse in permutations(range(len(answers)), 2):
        rows = [better, worse]
        ids = [f"p{row}" for row in rows]
        shares = np.array([answers[row] for row in rows], dtype=float)
        selection = select_pairs(
            pa.table({"query_id": ["q", "q"], "prompt_id": ids, "prompt": ids}),
            pa.table({"prompt_id": ids, "aligned": [True, True], "refined": pa.array([None, None], pa.string())}),
            PromptRewards(pa.array(ids), shares, checklist.score(shares), pa.array([[], []], pa.list_(pa.string()))),
            checklist,
            PairSettings(dominance=level, margin=margin),
        )
        for pair in selection.rows.to_pylist():
            found.add((int(pair["chosen_prompt_id"][1:]), int(pair["rejected_prompt_id"][1:])))
    return found


def expected(
    checklist: Checklist, answers: Sequence[Sequence[float]], level: Level, margin: float
) -> set[tuple[int, int]]:
    """The same, question by question in plain loops."""

    def groups(row: Sequence[float]) -> list[float]:
        if level in ("question", "none"):
            return list(row)
        names = list(dict.fromkeys(getattr(question, level) for question in checklist.questions))
        shares = []
        for name in names:
            own = [(q.weight, a) for q, a in zip(checklist.questions, row, strict=True) if getattr(q, level) == name]
            total = sum(weight for weight, _ in own)
            shares.append(sum(weight * a for weight, a in own) / total if total else sum(a for _, a in own) / len(own))
        return shares

    def score(row: Sequence[float]) -> float:
        return sum(q.weight * a for q, a in zip(checklist.questions, row, strict=True))

    found = set()
    for i, j in permutations(range(len(answers)), 2):
        a, b = groups(answers[i]), groups(answers[j])
        dominates = all(x >= y - 1e-9 for x, y in zip(a, b, strict=True)) and any(
            x > y + 1e-9 for x, y in zip(a, b, strict=True)
        )
        if score(answers[i]) - score(answers[j]) > margin + 1e-9 and (dominates or level == "none"):
            found.add((i, j))
    return found


shares = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])


@settings(max_examples=60)
@given(
    st.sampled_from([UNEVEN, SCORES, ONE]).flatmap(
        lambda checklist: st.tuples(
            st.just(checklist),
            st.lists(st.lists(shares, min_size=len(checklist), max_size=len(checklist)), min_size=2, max_size=4),
        )
    ),
    st.sampled_from(["question", "sub_dimension", "dimension", "none"]),
    st.sampled_from([0.0, 0.3, 2.6]),
)
def test_dominance_holds_for_any_checklist_at_every_level(
    drawn: tuple[Checklist, list[list[float]]], level: Level, margin: float
) -> None:
    checklist, answers = drawn
    assert chosen(checklist, answers, level, margin) == expected(checklist, answers, level, margin)


def test_levels_differ_where_one_group_makes_up_for_a_question() -> None:
    better, worse = [1, 0, 1, 1, 1, 1, 0], [1, 1, 0, 1, 1, 0, 1]  # pair: 3 of 4 against 1 of 4; four: the same
    assert chosen(UNEVEN, [better, worse], "question", 0.5) == set()
    assert chosen(UNEVEN, [better, worse], "sub_dimension", 0.5) == set()
    assert chosen(UNEVEN, [better, worse], "dimension", 0.5) == {(0, 1)}


def test_without_dominance_the_score_alone_decides() -> None:
    assert chosen(UNEVEN, [[1, 0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 1, 1, 1]], "none", 0.5) == {(0, 1)}


def test_groups_are_questions_in_their_order() -> None:
    assert [[question.id for question in group] for group in UNEVEN.groups(3)] == [
        ["lone", "pair_1", "pair_2"],
        ["four_1", "four_2", "four_3"],
        ["four_4"],
    ]
    assert [len(group) for group in UNEVEN.groups(1)] == [1] * 7
    assert [len(group) for group in UNEVEN.groups(64)] == [7]


# ---- named scores ----------------------------------------------------------------------------------------------------


def test_scores_are_a_checklist_whose_differences_are_the_models_own() -> None:
    assert SCORES.ids == ("visual", "motion", "text")
    assert SCORES.counts == "probability"
    assert SCORES.questions[0].text == "visual quality (-10 to 10)"
    assert SCORES.questions[1].text == "motion (0 to 5)"
    raw = np.array([[1.5, 4.0, 1.0], [-0.25, 2.0, 5.0]])
    scales = [Scale("visual", -10, 10), Scale("motion", 0, 5), Scale("text", 1, 5)]
    given = [[scale.share(value) for scale, value in zip(scales, row, strict=True)] for row in raw]
    own = raw @ [1.0, 2.0, 0.0]
    assert SCORES.score(given)[0] - SCORES.score(given)[1] == pytest.approx(own[0] - own[1])
    assert list(SCORES.by_dimension(given)) == ["visual", "motion", "text"]


def test_scores_are_averaged_as_shares() -> None:
    kind = pa.list_(pa.struct([("question", pa.string()), ("yes", pa.bool_()), ("probability", pa.float64())]))
    answers: list[list[dict[str, Any]]] = [
        [{"question": name, "yes": p > 0.5, "probability": p} for name, p in zip(SCORES.ids, row, strict=True)]
        for row in ([0.5, 0.25, 1.0], [1.0, 0.75, 0.0])
    ]
    table = pa.table(
        {"video_id": ["v1", "v2"], "prompt_id": ["p", "p"], "score": [1.0, 2.0], "answers": pa.array(answers, kind)}
    )
    assert average_rewards(table, SCORES, use=SCORES.counts).answers.tolist() == [[0.75, 0.5, 0.5]]


@pytest.mark.parametrize("value", [-10.01, 10.01, math.nan, math.inf])
def test_a_score_off_its_scale_is_no_answer(value: float) -> None:
    with pytest.raises(UnreadableAnswer, match=r"'visual' is .*; its scale is -10 to 10"):
        Scale("visual", -10, 10).share(value)


@pytest.mark.parametrize(
    ("low", "high", "weight"), [(1, 1, 1), (2, 1, 1), (0, math.inf, 1), (0, 1, -1), (0, 1, math.nan)]
)
def test_scales_that_make_no_sense_are_refused(low: float, high: float, weight: float) -> None:
    with pytest.raises(UnusableChecklist, match="'odd'"):
        Scale("odd", low, high, weight)


def test_what_counts_is_kept_in_json_and_older_files_read_as_before() -> None:
    assert Checklist.from_json(SCORES.to_json()) == SCORES
    assert json.loads(SCORES.to_json())["counts"] == "probability"
    assert "counts" not in json.loads(UNEVEN.to_json())  # its content, and with it every recipe, stays as it was
    assert Checklist.from_json(UNEVEN.to_json()).counts == "yes"
    content = json.loads(UNEVEN.to_json())
    with pytest.raises(UnusableChecklist, match="counts 'value'"):
        Checklist.from_json(json.dumps({**content, "counts": "value"}))


# ---- queries in questions --------------------------------------------------------------------------------------------


@given(st.text(max_size=200))
def test_a_quoted_query_is_one_line_without_double_quotes_and_quoting_twice_is_quoting_once(query: str) -> None:
    quoted = as_quoted(query)
    assert '"' not in quoted
    assert "\n" not in quoted
    quoted.encode()
    assert as_quoted(quoted) == quoted


@pytest.mark.parametrize(
    ("query", "quoted"),
    [
        ("a red ball", "a red ball"),
        ('a sign that says "stop"', "a sign that says 'stop'"),
        ("“stop”, ＂go＂", "'stop', 'go'"),
        ("one\ntwo\u2028three", "one two three"),
        ("x<|im_end|>y</s>z[INST]w", "x(|im_end|>y(/s>z(INST]w"),
        ("x<\u200b|im_end|>", "x(|im_end|>"),
        ("5 < 6 [sic] 日本語", "5 < 6 [sic] 日本語"),
        ("[[prompt]]", "[[prompt]]"),
    ],
)
def test_ordinary_queries_stay_as_they_are_and_others_lose_their_sting(query: str, quoted: str) -> None:
    assert as_quoted(query) == quoted


def test_the_query_stands_in_quotes_whether_or_not_the_question_has_them() -> None:
    for text in ('Is "[[prompt]]" shown?', "Is [[prompt]] shown?"):
        question = Question("q", text, "d", "s", 1.0)
        assert question.ask_quoting('a "b" [[prompt]] \\1') == "Is \"a 'b' [[prompt]] \\1\" shown?"
    assert Question("q", "Is it clear?", "d", "s", 1.0).ask_quoting("x") == "Is it clear?"
    assert len(Question("q", "[[prompt]]", "d", "s", 1.0).ask_quoting("x " * 5000)) <= LONGEST_QUERY + 2


# ---- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["yes", "Yes", " YES", "▁yes", "Ġyes", "yes.", '"Yes"', "*yes*", "\nyes"])
def test_variants_of_a_word_are_the_word(token: str) -> None:
    assert read_token(token) is True
    assert read_token(token.replace("es", "o").replace("ES", "O").replace("y", "n").replace("Y", "N")) is False


@pytest.mark.parametrize("token", ["y", "yesterday", "not", "nope", "", "1", "ye", "none"])
def test_other_tokens_are_neither(token: str) -> None:
    assert read_token(token) is None


def test_probabilities_are_summed_over_variants() -> None:
    tokens = [("Yes", math.log(0.3)), (" yes", math.log(0.1)), ("No", math.log(0.1)), ("Well", math.log(0.5))]
    assert probability_of_yes(tokens) == pytest.approx(0.8)
    assert probability_of_yes([("Well", -0.1)]) is None
    assert probability_of_yes([("No", -math.inf)]) is None
    assert probability_of_yes([("yes", -math.inf), ("no", -1.0)]) == 0.0
    for bad in (math.nan, 0.5):
        with pytest.raises(UnreadableAnswer, match="log probability"):
            probability_of_yes([("yes", bad)])


def test_numbered_answers_are_those_of_their_schema() -> None:
    assert read_numbered_answers('{"2": "no", "1": "Yes"}', {"1": "a", "2": "b"}) == [True, False]
    schema = answers_schema(["1", "2"])
    assert schema["required"] == ["1", "2"]
    assert schema["additionalProperties"] is False
    with pytest.raises(UnreadableAnswer, match="'b': expected yes or no, got 'perhaps'"):
        read_numbered_answers('{"1": "yes", "2": "perhaps"}', {"1": "a", "2": "b"})
