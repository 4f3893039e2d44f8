"""What prompts are like: each figure on prompts where it can be told by eye."""

import math

import pyarrow as pa
import pytest

from ml.prompt_statistics import prompt_statistics
from ml.rules import critique, faithfulness, refine


def table(*rows: tuple[str, str, str, bool | None]) -> pa.Table:
    return pa.Table.from_pylist(
        [dict(zip(("method", "query", "prompt", "cut"), row, strict=True)) for row in rows],
        schema=pa.schema([("method", "string"), ("query", "string"), ("prompt", "string"), ("cut", pa.bool_())]),
    )


@pytest.mark.parametrize(
    ("query", "prompt", "share"),
    [
        ("crimson hoop heads west", "A red ring moves to the left.", 1.0),
        ("crimson hoop heads west", "A red ring moves to the right.", 2 / 3),
        ("crimson hoop heads west", "A red ring and a blue ring move to the left.", 2 / 3),  # says another colour, too
        ("crimson hoop heads west", "", 0.0),
        ("an old sailor mends a torn net", "An old sailor sits on the pier and mends his net.", 4 / 5),
        ("an old sailor mends a torn net", "A young dancer on a stage.", 0.0),
        ("", "Anything at all.", 1.0),
        ("naked", "A calm sea.", 1.0),  # what is unsafe is not asked for
    ],
)
def test_faithfulness_is_the_share_of_what_is_said(query: str, prompt: str, share: float) -> None:
    assert faithfulness(query, prompt) == pytest.approx(share)


@pytest.mark.parametrize("query", ["crimson hoop heads west", "an old sailor mends a torn net, 4k"])
def test_a_refinement_is_faithful(query: str) -> None:
    refined = refine(query, "A nice video.")
    assert critique(query, refined).aligned
    assert faithfulness(query, refined) == 1.0 > faithfulness(query, "A nice video.")


def test_each_method_has_its_own_figures() -> None:
    calm = "A red ring moves to the left over a plain ground in soft and even light."
    stuck = "so very nice indeed so very nice indeed so very nice indeed"
    rows = [
        ("good", "crimson hoop heads west", calm, False),
        ("good", "a blue box spins", "A blue square turns on the spot.", False),
        ("bad", "crimson hoop heads west", stuck, True),
        ("bad", "a blue box spins", stuck, None),
        ("bad", "a blue box spins", "naked people", None),
    ]
    good, bad = prompt_statistics(table(*rows))
    assert (good.method, good.n, bad.method, bad.n) == ("good", 2, "bad", 3)
    assert good.words.mean == (16 + 7) / 2
    assert (good.repeating.mean, bad.repeating.mean) == (0.0, pytest.approx(2 / 3))
    assert (good.cut.mean, bad.cut.mean, bad.cut.n) == (0.0, 1.0, 1)
    assert (good.unsafe_terms.mean, bad.unsafe_terms.mean) == (0.0, pytest.approx(1 / 3))
    assert good.faithful.mean > bad.faithful.mean == 0.0
    assert good.distinct_2 is not None and bad.distinct_2 is not None and good.distinct_2 > bad.distinct_2
    assert good.self_bleu is not None and bad.self_bleu is not None and good.self_bleu < bad.self_bleu


def test_what_cannot_be_told_is_not_made_up() -> None:
    (alone,) = prompt_statistics(table(("original", "dog", "dog", None)))
    assert alone.cut.n == 0 and math.isnan(alone.cut.mean)
    assert (alone.distinct_2, alone.self_bleu) == (None, None)
    assert prompt_statistics(table()) == []
