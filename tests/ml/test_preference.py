import time
from itertools import product
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ml.checklist import Checklist, Question
from ml.preference import (
    PAIR_SCHEMA,
    PairSelection,
    PairSettings,
    PromptRewards,
    average_rewards,
    select_pairs,
)

# Weights and shares are binary fractions, so sums are exact and the oracle can compare without a tolerance.
CHECKLIST = Checklist(
    "test",
    "1",
    (
        Question("a", "A?", "one", "one_x", 1.0),
        Question("b", "B?", "one", "one_y", 1.0),
        Question("c", "C?", "two", "two_x", 0.5),
        Question("d", "D?", "two", "two_x", 0.5),
        Question("e", "E?", "three", "three_x", 0.0),
    ),
)
Candidate = dict[str, Any]


def texts(values: list[str]) -> pa.Array:
    return pa.array(values, pa.string())


def lists(values: list[list[str]]) -> pa.ListArray:
    return pa.array(values, pa.list_(pa.string()))


def run(candidates: list[Candidate], pair_settings: PairSettings | None = None) -> PairSelection:
    """Select pairs from candidates as `candidate` makes them; answers None: no reward."""
    judged = [item for item in candidates if item["aligned"] is not None]
    rewarded = [item for item in candidates if item["answers"] is not None]
    answers = np.array([item["answers"] for item in rewarded], dtype=float).reshape(len(rewarded), len(CHECKLIST))
    return select_pairs(
        pa.table(
            {
                "query_id": pa.array([item["query"] for item in candidates], pa.string()),
                "prompt_id": pa.array([item["id"] for item in candidates], pa.string()),
                "prompt": pa.array([item["prompt"] for item in candidates], pa.string()),
            }
        ),
        pa.table(
            {
                "prompt_id": pa.array([item["id"] for item in judged], pa.string()),
                "aligned": pa.array([item["aligned"] for item in judged], pa.bool_()),
                "refined": pa.array([item["refined"] for item in judged], pa.string()),
            }
        ),
        PromptRewards(
            prompt_ids=texts([item["id"] for item in rewarded]),
            answers=answers,
            scores=CHECKLIST.score(answers),
            video_ids=lists([[f"{item['id']}-0", f"{item['id']}-1"] for item in rewarded]),
        ),
        CHECKLIST,
        pair_settings,
    )


def candidate(
    query: str,
    identifier: str,
    *,
    prompt: str | None = None,
    aligned: bool | None = True,
    refined: str | None = None,
    answers: tuple[float, ...] | None = None,
) -> Candidate:
    return {
        "query": query,
        "id": identifier,
        "prompt": prompt or f"prompt {identifier}",
        "aligned": aligned,
        "refined": refined,
        "answers": answers,
    }


# ------------------------------------------------------------------------------------------ the oracle


def oracle(candidates: list[Candidate], level: str, margin: float, choice: str, feedback: str) -> list[tuple[Any, ...]]:
    """VPO's steps 6 to 8 in plain loops, straight from the method's description."""
    pairs: list[tuple[Any, ...]] = []
    for query in sorted({item["query"] for item in candidates}):
        own = [item for item in candidates if item["query"] == query]
        pair: tuple[Any, ...] | None = None
        if feedback in ("both", "text"):
            for item in own:
                refined = item["refined"]
                if (
                    item["aligned"] is False
                    and refined
                    and refined.strip()
                    and refined.strip() != item["prompt"].strip()
                ):
                    if "\n" in refined or "\r" in refined:
                        continue
                    pair = (query, refined, item["prompt"], "text", None, None, item["id"])
                    break
        if pair is None and feedback in ("both", "video"):
            found = []
            for i, j in product(own, own):
                if i["aligned"] is not True or j["aligned"] is not True or i["answers"] is None or j["answers"] is None:
                    continue
                if i["prompt"].strip() == j["prompt"].strip():
                    continue
                difference = total(i["answers"]) - total(j["answers"])
                if level != "none":
                    grouped = list(zip(groups(i["answers"], level), groups(j["answers"], level), strict=True))
                    if any(a < b for a, b in grouped) or not any(a > b for a, b in grouped):
                        continue
                if difference > margin:
                    found.append((difference, (query, i["prompt"], j["prompt"], "video", difference, i["id"], j["id"])))
            if found:
                widest = max(entry[0] for entry in found)
                pair = found[0][1] if choice == "first" else next(e[1] for e in found if e[0] == widest)
        if pair is not None:
            pairs.append(pair)
    return pairs


def total(answers: tuple[float, ...]) -> float:
    return sum(question.weight * answer for question, answer in zip(CHECKLIST.questions, answers, strict=True))


def groups(answers: tuple[float, ...], level: str) -> list[float]:
    a, b, c, d, e = answers
    if level == "question":
        return [a, b, c, d, e]
    if level == "sub_dimension":
        return [a, b, (c + d) / 2, e]
    return [(a + b) / 2, (c + d) / 2, e]


def as_tuples(selection: PairSelection) -> list[tuple[Any, ...]]:
    names = ("query_id", "chosen", "rejected", "feedback", "margin", "chosen_prompt_id", "rejected_prompt_id")
    return [tuple(row[name] for name in names) for row in selection.rows.to_pylist()]


shares = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
candidate_lists = st.lists(
    st.tuples(
        st.sampled_from(["q1", "q2", "q3"]),
        st.sampled_from(["same words", "other words", None, None]),
        st.sampled_from([True, True, True, False, None]),
        st.sampled_from(
            [None, "", "  ", "mended", "mended\nin two lines", "same words", "same words ", "a\rb", "better"]
        ),
        st.none() | st.tuples(shares, shares, shares, shares, shares) | st.tuples(*[st.sampled_from([0.0, 1.0])] * 5),
    ),
    max_size=12,
).map(
    lambda drawn: [
        candidate(query, f"p{n:02}", prompt=prompt, aligned=aligned, refined=refined, answers=answers)
        for n, (query, prompt, aligned, refined, answers) in enumerate(drawn)
    ]
)


@settings(max_examples=200)
@given(
    candidate_lists,
    st.sampled_from(["question", "sub_dimension", "dimension", "none"]),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.sampled_from(["first", "best"]),
    st.sampled_from(["both", "text", "video"]),
)
def test_selection_agrees_with_the_plain_loops_of_the_oracle(
    candidates: list[Candidate],
    level: Literal["question", "sub_dimension", "dimension", "none"],
    margin: float,
    choice: Literal["first", "best"],
    feedback: Literal["both", "text", "video"],
) -> None:
    chosen_settings = PairSettings(dominance=level, margin=margin, choice=choice, feedback=feedback)
    selection = run(candidates, chosen_settings)
    assert as_tuples(selection) == oracle(candidates, level, margin, choice, feedback)


@settings(max_examples=150)
@given(candidate_lists)
def test_every_selection_keeps_the_rules_of_the_paper(candidates: list[Candidate]) -> None:
    selection = run(candidates)
    rows = selection.rows.to_pylist()
    assert selection.rows.schema == PAIR_SCHEMA
    assert len({row["query_id"] for row in rows}) == len(rows)
    assert len({row["pair_id"] for row in rows}) == len(rows)
    assert all(row["chosen"] != row["rejected"] for row in rows)
    assert all(row["feedback"] == "text" or row["margin"] > 0.5 for row in rows)
    counts = selection.counts
    assert counts.text_pairs + counts.video_pairs == len(rows)
    assert counts.passed + counts.flawed + counts.without_critique == counts.candidates == len(candidates)
    shuffled = run(list(reversed(candidates)))
    assert {row["query_id"] for row in rows} == {row["query_id"] for row in shuffled.rows.to_pylist()}


# ---------------------------------------------------------------------------------------- single cases

BEST, GOOD, BAD = (1.0, 1.0, 1.0, 1.0, 1.0), (1.0, 1.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0, 0.0, 0.0)


def test_the_text_pair_wins_over_the_video_pair_and_is_counted() -> None:
    candidates = [
        candidate("q", "a", answers=BEST),
        candidate("q", "b", answers=BAD),
        candidate("q", "c", aligned=False, refined="mended"),
    ]
    selection = run(candidates)
    assert as_tuples(selection) == [("q", "mended", "prompt c", "text", None, None, "c")]
    assert selection.counts.video_pairs_replaced_by_text == 1
    video = run(candidates, PairSettings(feedback="video"))
    assert as_tuples(video) == [("q", "prompt a", "prompt b", "video", 3.0, "a", "b")]
    assert video.rows["chosen_video_ids"].to_pylist() == [["a-0", "a-1"]]
    assert video.rows["rejected_video_ids"].to_pylist() == [["b-0", "b-1"]]


def test_the_margin_must_be_exceeded_and_not_only_met() -> None:
    pair = [candidate("q", "a", answers=(1, 0, 1, 0, 0)), candidate("q", "b", answers=(1, 0, 0, 0, 0))]
    assert run(pair).rows.num_rows == 0
    assert run(pair, PairSettings(margin=0.49)).rows.num_rows == 1


def test_one_worse_question_forbids_a_pair_whatever_the_score() -> None:
    pair = [candidate("q", "a", answers=(1, 1, 1, 0, 0)), candidate("q", "b", answers=(0, 0, 0, 1, 0))]
    assert run(pair).rows.num_rows == 0
    assert run(pair, PairSettings(dominance="dimension")).rows.num_rows == 1
    blind = [candidate("q", "a", answers=(1, 1, 1, 1, 0)), candidate("q", "b", answers=(0, 0, 0, 0, 1))]
    assert run(blind, PairSettings(dominance="dimension")).rows.num_rows == 0
    assert run(blind, PairSettings(dominance="none")).rows.num_rows == 1


def test_a_tolerance_forgives_small_differences() -> None:
    pair = [candidate("q", "a", answers=(1, 1, 0.25, 1, 1)), candidate("q", "b", answers=(0, 0, 0.5, 1, 1))]
    assert run(pair).rows.num_rows == 0
    assert run(pair, PairSettings(dominance_tolerance=0.25)).rows.num_rows == 1


def test_rounding_noise_of_averages_is_no_difference() -> None:
    third = (0.1 + 0.2) / 3
    pair = [
        candidate("q", "a", answers=(1, 1, third, 1, 1)),
        candidate("q", "b", answers=(0, 0, 0.3 / 3, 1, 1)),
    ]
    noise = [
        candidate("q", "a", answers=(1, 1, 0.3 / 3, 1, 1)),
        candidate("q", "b", answers=(0, 0, third, 1, 1)),
    ]
    assert third != 0.3 / 3
    assert run(pair).rows.num_rows == run(noise).rows.num_rows == 1


def test_first_and_best_differ() -> None:
    three = [
        candidate("q", "a", answers=BAD),
        candidate("q", "b", answers=GOOD),
        candidate("q", "c", answers=BEST),
    ]
    assert as_tuples(run(three))[0][1:3] == ("prompt b", "prompt a")
    assert as_tuples(run(three, PairSettings(choice="best")))[0][1:3] == ("prompt c", "prompt a")


def test_losses_on_the_way_are_counted() -> None:
    selection = run(
        [
            candidate("q", "a", aligned=False, refined=None),
            candidate("q", "b", aligned=False, refined="one\ntwo"),
            candidate("q", "c", aligned=False, refined="prompt c "),
            candidate("q", "d", aligned=False, refined="one\u2028two"),
            candidate("q", "e", aligned=None),
            candidate("q", "f", aligned=True),
        ]
    )
    assert selection.rows.num_rows == 0
    counts = selection.counts
    assert (counts.refinements_missing, counts.refinements_with_line_break, counts.refinements_unchanged) == (
        1,
        2,
        1,
    )
    assert (counts.without_critique, counts.passed_without_reward, counts.queries) == (1, 1, 1)


def test_without_candidates_or_rewards_there_are_no_video_pairs() -> None:
    assert run([]).rows.schema == PAIR_SCHEMA
    candidates = pa.table({"query_id": ["q"], "prompt_id": ["p"], "prompt": ["x"]})
    critiques = pa.table({"prompt_id": ["p"], "aligned": [False], "refined": ["y"]})
    assert select_pairs(candidates, critiques, None, CHECKLIST).rows.num_rows == 1


def test_ids_that_occur_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        run([candidate("q", "a"), candidate("q", "a")])
    with pytest.raises(ValueError, match="occurs twice"):
        PromptRewards(texts(["a", "a"]), np.zeros((2, 5)), np.zeros(2), lists([[], []]))
    with pytest.raises(ValueError, match="finite"):
        PromptRewards(texts(["a"]), np.zeros((1, 5)), np.array([np.nan]), lists([[]]))


def test_settings_are_checked() -> None:
    with pytest.raises(ValidationError):
        PairSettings.model_validate({"dominance": "answer"})
    with pytest.raises(ValidationError):
        PairSettings.model_validate({"marign": 0.5})


def test_rewards_are_averaged_over_seeds() -> None:
    def answers(values: str, order: str = "abcde") -> list[dict[str, Any]]:
        return [
            {
                "question": name,
                "yes": values["abcde".index(name)] == "1",
                "probability": 0.25 + 0.5 * (name == "a"),
            }
            for name in order
        ]

    table = pa.table(
        {
            "video_id": ["v1", "v2", "v3"],
            "prompt_id": ["p", "q", "p"],
            "score": [2.0, 1.0, 1.0],
            "answers": [answers("11000"), answers("00000"), answers("01100", order="edcba")],
        }
    )
    rewards = average_rewards(table, CHECKLIST)
    assert rewards.prompt_ids.to_pylist() == ["p", "q"]
    assert rewards.answers.tolist() == [[0.5, 1, 0.5, 0, 0], [0, 0, 0, 0, 0]]
    assert rewards.scores.tolist() == [1.5, 1.0]
    assert rewards.video_ids.to_pylist() == [["v1", "v3"], ["v2"]]
    assert average_rewards(table, CHECKLIST, use="probability").answers[0].tolist() == [0.75] + [0.25] * 4
    assert len(average_rewards(table.slice(0, 0), CHECKLIST).prompt_ids) == 0


def test_one_video_a_prompt_stays_yes_and_no() -> None:
    """Plain answers give the pairs that the same answers as shares give, whatever the level."""
    random = np.random.default_rng(1)
    yes = random.random((60, 5)) < random.random((60, 1))
    answers = [
        [{"question": name, "yes": bool(said), "probability": 0.5} for name, said in zip("abcde", row, strict=True)][
            :: 1 - 2 * (number % 2)
        ]
        for number, row in enumerate(yes)
    ]
    ids = [f"p{number:02}" for number in range(60)]
    table = pa.table({"video_id": ids, "prompt_id": ids, "score": CHECKLIST.score(yes), "answers": answers})
    rewards = average_rewards(table, CHECKLIST)
    assert rewards.answers.dtype == np.bool_
    assert rewards.answers.tolist() == yes.tolist()
    shares = PromptRewards(rewards.prompt_ids, yes.astype(float), rewards.scores, rewards.video_ids)
    candidates = pa.table({"query_id": [f"q{number // 6}" for number in range(60)], "prompt_id": ids, "prompt": ids})
    critiques = pa.table({"prompt_id": ids, "aligned": [True] * 60, "refined": pa.nulls(60, pa.string())})
    for level in ("question", "sub_dimension", "dimension", "none"):
        chosen = PairSettings.model_validate({"dominance": level})
        plain, averaged = (select_pairs(candidates, critiques, r, CHECKLIST, chosen).rows for r in (rewards, shares))
        assert plain.num_rows > 3
        assert plain.equals(averaged)


@pytest.mark.parametrize(("order", "problem"), [("abcd", "v1"), ("abcda", "v1"), ("abcdx", "'x'"), ("", "v1")])
def test_rewards_with_missing_or_foreign_answers_are_refused(order: str, problem: str) -> None:
    answers = [{"question": name, "yes": True, "probability": 1.0} for name in order]
    kind = pa.list_(pa.struct([("question", pa.string()), ("yes", pa.bool_()), ("probability", pa.float64())]))
    table = pa.table(
        {"video_id": ["v1"], "prompt_id": ["p"], "score": [1.0], "answers": pa.array([answers], kind)},
    )
    with pytest.raises(ValueError, match=problem):
        average_rewards(table, CHECKLIST)


def test_ten_thousand_queries_take_a_moment() -> None:
    random = np.random.default_rng(0)
    queries, k, questions = 10_000, 4, 64
    n = queries * k
    checklist = Checklist(
        "big", "1", tuple(Question(f"q{i}", "?", f"d{i % 9}", f"s{i % 20}", 0.1) for i in range(questions))
    )
    quality = random.random(n)
    answers = (random.random(questions)[None, :] < quality[:, None]).astype(float)
    ids = [f"p{i}" for i in range(n)]
    candidates = pa.table(
        {
            "query_id": [f"q{i // k}" for i in range(n)],
            "prompt_id": ids,
            "prompt": [f"prompt {i}" for i in range(n)],
        }
    )
    aligned = random.random(n) < 0.9
    critiques = pa.table(
        {"prompt_id": ids, "aligned": aligned, "refined": [None if fine else "mended" for fine in aligned]}
    )
    rewards = PromptRewards(texts(ids), answers, checklist.score(answers), lists([[] for _ in ids]))
    started = time.perf_counter()
    selection = select_pairs(candidates, critiques, rewards, checklist)
    assert time.perf_counter() - started < 10
    assert selection.counts.text_pairs > 2000
    assert selection.counts.video_pairs > 4000
