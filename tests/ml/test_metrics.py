import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml.metrics import (
    bleu_against,
    bootstrap_interval,
    distinct_n,
    f_statistic,
    gains,
    reward_degeneracy,
    self_bleu,
    text_level_table,
    video_level_table,
    win_rates,
)

# ------------------------------------------------------------------------------------------- intervals


def test_the_bootstrap_interval_is_that_of_the_normal_approximation_for_many_values() -> None:
    values = np.random.default_rng(1).normal(3, 2, 2000)
    interval = bootstrap_interval(values)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.02)
    assert bootstrap_interval(values) == interval
    assert bootstrap_interval(values, seed=1) != interval
    assert bootstrap_interval(values, confidence=0.5).low > interval.low


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(2)
    hits = 0
    for trial in range(200):
        interval = bootstrap_interval(random.exponential(1.0, 60), resamples=500, seed=trial)
        hits += interval.low <= 1 <= interval.high
    assert 170 <= hits <= 199


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30))
def test_an_interval_holds_its_mean_and_stays_within_the_values(values: list[float]) -> None:
    interval = bootstrap_interval(values, resamples=200)
    assert min(values) - 1e-6 <= interval.low <= interval.high <= max(values) + 1e-6
    assert interval.n == len(values)


def test_odd_input_of_the_bootstrap() -> None:
    assert math.isnan(bootstrap_interval([]).mean)
    assert bootstrap_interval([2.0]).low == 2.0
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval([1.0, float("nan")])
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval([1.0], confidence=95)


def test_win_rates_count_ties_half() -> None:
    rate = win_rates([3, 2, 1, 1], [1, 2, 3, 0])
    assert (rate.won, rate.tied, rate.lost, rate.rate, rate.n) == (0.5, 0.25, 0.25, 0.625, 4)
    assert win_rates([0.1 + 0.2], [0.3]).tied == 1
    assert math.isnan(win_rates([], []).rate)
    with pytest.raises(ValueError, match="one shape"):
        win_rates([1, 2], [1])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
def test_win_rates_of_both_sides_sum_to_one(pairs: list[tuple[int, int]]) -> None:
    a, b = zip(*pairs, strict=True)
    forth, back = win_rates(a, b), win_rates(b, a)
    assert forth.rate + back.rate == pytest.approx(1)
    assert forth.won == pytest.approx(back.lost)


# ---------------------------------------------------------------------------------------------- tables


def test_the_text_level_table_gives_percentages_by_method() -> None:
    rows = text_level_table(
        pa.table(
            {
                "method": ["vpo"] * 4 + ["original"] * 2,
                "verdict": ["aligned", "aligned", "aligned", "unsafe", "refusal", "imprecise"],
            }
        )
    )
    assert [row.method for row in rows] == ["vpo", "original"]
    assert (rows[0].aligned, rows[0].unsafe, rows[0].imprecise, rows[0].refusal, rows[0].n) == (
        75,
        25,
        0,
        0,
        4,
    )
    assert (rows[1].aligned, rows[1].imprecise, rows[1].refusal) == (0, 50, 50)
    assert rows[0].intervals["aligned"].low < 75 < rows[0].intervals["aligned"].high
    with pytest.raises(ValueError, match="'fine'"):
        text_level_table(pa.table({"method": ["vpo"], "verdict": ["fine"]}))


def rewards_table() -> pa.Table:
    """Two queries, two methods; the first query of the original has two seeds, which must not weigh twice."""
    rows = [
        ("original", "q1", 1.0, 0.0),
        ("original", "q1", 3.0, 1.0),
        ("original", "q2", 5.0, 1.0),
        ("vpo", "q1", 4.0, 1.0),
        ("vpo", "q2", 5.0, 0.5),
        ("vpo", "q3", 9.0, 0.0),
    ]
    return pa.table(
        {
            "method": [row[0] for row in rows],
            "query_id": [row[1] for row in rows],
            "score": [row[2] for row in rows],
            "dimensions": [
                [{"dimension": "quality", "score": row[3]}, {"dimension": "safety", "score": 1.0}] for row in rows
            ],
        }
    )


def test_the_video_level_table_averages_seeds_first_and_compares_by_query() -> None:
    original, vpo = video_level_table(rewards_table())
    assert (original.method, original.score, original.n) == ("original", 3.5, 2)
    assert original.dimensions == {"quality": 0.75, "safety": 1.0}
    assert original.win_rate is None
    assert (vpo.score, vpo.n) == (6.0, 3)
    assert vpo.dimensions["quality"] == pytest.approx(0.5)
    assert vpo.win_rate is not None
    assert (vpo.win_rate.won, vpo.win_rate.tied, vpo.win_rate.n) == (0.5, 0.5, 2)
    assert original.low <= original.score <= original.high


def test_gains_are_paired_by_query() -> None:
    (row,) = gains(rewards_table())
    assert (row.method, row.against, row.mean, row.n) == ("vpo", "original", 1.0, 2)
    assert gains(rewards_table(), [("original", "vpo")])[0].mean == -1.0
    with pytest.raises(ValueError, match="'sft'"):
        gains(rewards_table(), [("vpo", "sft")])


def test_pairing_makes_the_interval_of_a_gain_narrow() -> None:
    random = np.random.default_rng(0)
    ease = random.normal(0, 5, 100)
    table = pa.table(
        {
            "method": ["a"] * 100 + ["b"] * 100,
            "query_id": [f"q{n}" for n in range(100)] * 2,
            "score": np.concatenate([ease, ease + 0.5 + random.normal(0, 0.1, 100)]),
        }
    )
    (row,) = gains(table, [("b", "a")])
    assert 0.45 < row.low < row.mean < row.high < 0.55


# ----------------------------------------------------------------------------------- trust in a reward


def plain_f(scores: np.ndarray) -> float:
    between = within = between_freedom = within_freedom = 0.0
    for query in scores:
        grand = query.mean()
        for prompt in query:
            between += len(prompt) * (prompt.mean() - grand) ** 2
            within += ((prompt - prompt.mean()) ** 2).sum()
            within_freedom += len(prompt) - 1
        between_freedom += len(query) - 1
    return float((between / between_freedom) / (within / within_freedom))


def test_f_is_near_1_for_noise_and_large_where_prompts_differ() -> None:
    random = np.random.default_rng(0)
    noise = random.normal(size=(200, 4, 3)) + random.normal(size=(200, 1, 1)) * 10
    ratio = f_statistic(noise)
    assert ratio.f == pytest.approx(plain_f(noise))
    assert ratio.low < 1 < ratio.high
    assert (ratio.between_freedom, ratio.within_freedom) == (600, 1600)
    prompts = f_statistic(noise + random.normal(size=(200, 4, 1)))
    assert prompts.f == pytest.approx(4, abs=0.8)
    assert prompts.low > 2


def test_f_copes_with_missing_prompts_and_seeds() -> None:
    nan = float("nan")
    scores = np.array([[[1, 2], [3, 4], [nan, nan]], [[5, nan], [7, 9], [2, 2]]], dtype=float)
    by_hand_between = 2 * (1.5 - 2.5) ** 2 + 2 * (3.5 - 2.5) ** 2 + (5 - 5) ** 2 + 2 * (8 - 5) ** 2 + 2 * (2 - 5) ** 2
    by_hand_within = 0.5 + 0.5 + 0 + 2 + 0
    ratio = f_statistic(scores)
    assert (ratio.between_freedom, ratio.within_freedom) == (3, 4)
    assert ratio.f == pytest.approx((by_hand_between / 3) / (by_hand_within / 4))


def test_f_that_cannot_be_told_is_nan() -> None:
    assert math.isnan(f_statistic(np.zeros((3, 4, 1))).f)
    assert math.isnan(f_statistic(np.zeros((3, 1, 4))).f)
    assert math.isnan(f_statistic(np.zeros((0, 4, 4))).f)
    assert math.isinf(f_statistic(np.repeat(np.arange(8.0).reshape(2, 4, 1), 3, axis=2)).f)
    with pytest.raises(ValueError, match="shape"):
        f_statistic([[1.0, 2.0]])


def test_degenerate_rewards_are_told_with_their_reason() -> None:
    varied = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 0]])
    fine = reward_degeneracy(varied, [2.0, 1.0, 1.5])
    assert not fine.degenerate
    assert fine.constant_questions == (1,)
    assert "no" in reward_degeneracy(np.zeros((5, 3)), np.zeros(5)).reason
    assert "yes" in reward_degeneracy(np.ones((5, 3)), np.ones(5)).reason
    assert reward_degeneracy(np.tile([1, 0, 1], (5, 1)), np.arange(5)).reason == "every video gives the same answers"
    assert reward_degeneracy(varied, [1.0, 1.0, 1.0]).reason == "every video has the same score"
    assert "finite" in reward_degeneracy(varied, [1.0, np.nan, 1.0]).reason
    assert not reward_degeneracy([[1, 1]], [1.0]).degenerate


# ----------------------------------------------------------------------------------------------- texts


def test_distinct_n() -> None:
    assert distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 4)
    assert distinct_n(["A a a"], 1) == pytest.approx(1 / 3)
    assert math.isnan(distinct_n(["a"], 2))


def plain_bleu(text: list[str], references: list[list[str]]) -> float:
    logs = []
    for n in range(1, 5):
        grams = Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
        if not grams:
            continue
        most: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            most |= Counter(tuple(reference[i : i + n]) for i in range(len(reference) - n + 1))
        matches = sum(min(count, most[gram]) for gram, count in grams.items())
        logs.append(math.log(max(matches, 0.1) / sum(grams.values())))
    if not logs:
        return 0.0
    closest = min((abs(len(reference) - len(text)), len(reference)) for reference in references)[1] if references else 0
    penalty = 1.0 if closest <= len(text) else math.exp(1 - closest / len(text))
    return math.exp(sum(logs) / len(logs)) * penalty


sentences = st.lists(st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), max_size=9), min_size=2, max_size=7)


@settings(max_examples=100)
@given(sentences, sentences)
def test_bleu_agrees_with_a_plain_implementation(texts: list[list[str]], references: list[list[str]]) -> None:
    fast = bleu_against([" ".join(text) for text in texts], [" ".join(text) for text in references], chunk=3)
    assert fast.tolist() == pytest.approx([plain_bleu(text, references) for text in texts])
    own = bleu_against([" ".join(text) for text in texts], [" ".join(text) for text in texts], own=range(len(texts)))
    others = [plain_bleu(text, texts[:n] + texts[n + 1 :]) for n, text in enumerate(texts)]
    assert own.tolist() == pytest.approx(others)


def test_self_bleu_is_1_for_copies_low_for_strangers_and_none_for_one() -> None:
    assert self_bleu(["a red ball rolls right"] * 5) == pytest.approx(1)
    strange = self_bleu(["one two three four", "five six seven eight", "nine ten eleven twelve"])
    assert strange is not None
    assert strange < 0.1
    assert self_bleu(["alone"]) is None
    many = [f"word{n} word{n + 1} red ball" for n in range(300)]
    assert self_bleu(many, sample=50) == self_bleu(many, sample=50)
