"""Content ids: known values, no collisions by concatenation, the same in Python and in SQL."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.ids import content_id
from storage.lake import Lake

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
PARTS = st.lists(st.none() | TEXT, min_size=1, max_size=5)


def test_is_the_sha256_of_the_length_prefixed_parts() -> None:
    assert content_id("ab", "ü") == hashlib.sha256(b"2:ab2:\xc3\xbc").hexdigest()[:24]


@given(PARTS, PARTS)
def test_different_parts_have_different_ids(one: list[str | None], other: list[str | None]) -> None:
    assert (content_id(*one) == content_id(*other)) == (one == other)


def test_parts_do_not_run_into_each_other() -> None:
    ids = [
        content_id("ab", "c"),
        content_id("a", "bc"),
        content_id("abc"),
        content_id("abc", ""),
        content_id("abc", None),
    ]
    assert len(set(ids)) == len(ids)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=PARTS)
def test_sql_agrees(lake: Lake, parts: list[str | None]) -> None:
    assert lake.query("SELECT content_id(?::VARCHAR[]) AS id", [parts])["id"][0].as_py() == content_id(*parts)


def test_only_text_is_taken() -> None:
    with pytest.raises(TypeError, match="int: 3"):
        content_id("a", 3)  # type: ignore[arg-type]
