"""Which settings two recipes have differently."""

from hypothesis import given
from hypothesis import strategies as st

from storage.differences import ABSENT, Difference, differences

LEAVES = st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["a", "{b", '{"c": 1}', ""])
PARTS = st.dictionaries(
    st.sampled_from("xyz"),
    st.recursive(LEAVES, lambda inner: st.dictionaries(st.sampled_from("pq"), inner), max_leaves=4),
)


def test_settings_are_named_by_their_path() -> None:
    before = {"code": "1", "sampling": {"temperature": 0.7, "top_p": 1.0}, "examples": "abc"}
    after = {"code": "2", "sampling": {"temperature": 0.9, "top_p": 1.0}, "shots": 5}
    assert differences(before, after) == (
        Difference("code", "1", "2"),
        Difference("examples", "abc", ABSENT),
        Difference("sampling.temperature", 0.7, 0.9),
        Difference("shots", ABSENT, 5),
    )


def test_json_in_a_text_is_looked_into() -> None:
    before, after = {"judge": '{"model": "small", "seed": 1}'}, {"judge": '{"model": "big", "seed": 1}'}
    assert differences(before, after) == (Difference("judge.model", "small", "big"),)


def test_yes_is_not_one_and_none_is_not_absent() -> None:
    assert differences({"a": True}, {"a": 1}) == (Difference("a", True, 1),)
    assert differences({"a": None}, {}) == (Difference("a", None, ABSENT),)


@given(before=PARTS, after=PARTS)
def test_none_for_equal_recipes_and_both_ways_alike(before: dict, after: dict) -> None:  # type: ignore[type-arg]
    assert differences(before, before) == ()
    there, back = differences(before, after), differences(after, before)
    assert [(d.name, d.before, d.after) for d in there] == [(d.name, d.after, d.before) for d in back]
