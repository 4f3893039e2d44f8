"""Votes: rates count queries once, and alpha is what its author computed by hand."""

from __future__ import annotations

import math

import pytest

from ml.votes import Ballot, agreement, preferences

ORDER = ("original", "few_shot", "sft", "vpo")


def ballot(query: str, annotator: str, preferred: str | None, first: str = "vpo", second: str = "original") -> Ballot:
    return Ballot(query, annotator, first, second, preferred)


def test_alpha_of_krippendorffs_own_examples() -> None:
    """Computing Krippendorff's Alpha-Reliability (2011), sections B (two observers) and C (missing values)."""
    two = ["0100000010", "1110010000"]
    assert agreement(list(zip(*two, strict=True))).alpha == pytest.approx(0.095, abs=5e-4)
    four = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    units = [[mark for mark in column if mark != "."] for column in zip(*four, strict=True)]
    found = agreement(units)
    assert found.alpha == pytest.approx(0.743, abs=5e-4)
    assert found.units == 11


def test_agreement_that_cannot_be_told() -> None:
    nothing = agreement([["left"], []])
    assert math.isnan(nothing.alpha)
    assert nothing.units == 0
    alike = agreement([["a", "a"], ["a", "a"]])
    assert math.isnan(alike.alpha), "where one value occurs only, chance gives full agreement too"
    assert alike.share == 1
    assert agreement([["a", "a"], ["b", "b"]]).alpha == 1
    assert agreement([["a", "b"], ["b", "a"]]).alpha < 0


def test_a_win_is_a_win_on_either_side() -> None:
    (row,) = preferences([ballot("q1", "ann", "vpo"), ballot("q2", "ann", "vpo", "original", "vpo")], ORDER)
    assert (row.method, row.against, row.won, row.tied, row.lost) == ("vpo", "original", 2, 0, 0)
    assert (row.rate, row.low, row.high) == (1, 1, 1)


def test_a_query_counts_once_however_many_vote_on_it() -> None:
    crowd = [ballot("q1", f"a{n}", "vpo") for n in range(9)]
    (row,) = preferences([*crowd, ballot("q2", "ann", "original")], ORDER)
    assert row.votes == 10
    assert (row.queries, row.annotators) == (2, 10)
    assert row.rate == 0.5
    assert (row.low, row.high) == (0, 1)


def test_ties_count_half() -> None:
    (row,) = preferences([ballot("q1", "ann", None), ballot("q2", "ann", "vpo")], ORDER)
    assert row.rate == 0.75
    assert (row.won, row.tied, row.lost) == (1, 1, 0)


def test_pairs_come_in_the_order_in_which_people_compare() -> None:
    votes = [
        ballot("q", "ann", "mine", "mine", "vpo"),
        ballot("q", "ann", "vpo", "sft", "vpo"),
        ballot("q", "ann", "sft", "sft", "original"),
    ]
    rows = [(row.method, row.against) for row in preferences(votes, ORDER)]
    assert rows == [("sft", "original"), ("vpo", "sft"), ("mine", "vpo")]
    assert preferences([], ORDER) == []
