import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.safety import categories, find_unsafe, is_unsafe, remove_unsafe


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("a naked woman", "sexual"),
        ("NAKED", "sexual"),
        ("n\u0430ked nude", "sexual"),
        ("nudé models", "sexual"),
        ("nu\u200bde", "sexual"),
        ("ｎｕｄｅ", "sexual"),
        ("blow-job", "sexual"),
        ("a man murders his boss", "violence"),
        ("serial  killers at night", "violence"),
        ("puddle of blood", "gore"),
        ("dead bodies everywhere", "gore"),
        ("nazis marching", "hate"),
        ("she hangs\nherself", "self_harm"),
        ("sniffing cocaine", "drugs"),
        ("two robbers", "illegal"),
        ("maggots", "disturbing"),
    ],
)
def test_unsafe_terms_are_found(text: str, category: str) -> None:
    assert category in {match.category for match in find_unsafe(text)}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red ball moves to the right",
        "an overhead shot of a beach, wide shot, shot on film",
        "killer whales jump",
        "Blood moon over the sea",
        "blood oranges and blood-red roses",
        "a cocktail, a peacock, a classic Essex bass guitar, grapes, skilled analysis",
        "robin red breasted bird",
        "a baby shooting a basketball",
        "assassin's creed castle",
        "the dead sea",
        "scunthorpe",
        "violent storm at sea",
    ],
)
def test_harmless_texts_are_left_alone(text: str) -> None:
    assert find_unsafe(text) == []
    assert remove_unsafe(text) == text


def test_matches_point_into_the_text_as_it_was_given() -> None:
    text = "Ünïcödé ﬁ a ＮＵＤＥ man"
    (match,) = find_unsafe(text)
    assert text[match.start : match.end] == "ＮＵＤＥ"
    accented = "un nude\u0301 x"
    (match,) = find_unsafe(accented)
    assert accented[match.start : match.end] == "nude\u0301"


def test_the_longest_term_wins_and_terms_are_not_joined_across_sentences() -> None:
    assert [match.term for match in find_unsafe("a serial killer")] == ["serial killer"]
    assert is_unsafe("blow job")
    assert not is_unsafe("a mighty blow. Job found")


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a naked red ball rolls", "a red ball rolls"),
        ("a red ball covered in blood", "a red ball covered"),
        ("a red ball dripping with blood, moving right", "a red ball dripping, moving right"),
        ("a corpse on the floor", "on the floor"),
        ("blood and a red ball", "a red ball"),
        ("bloody, a red ball on the floor", "a red ball on the floor"),
        ("Smurf fucking", "Smurf"),
        ("a blow nude job on the hill", "on the hill"),
        ("gory floor organ or nothing", "floor organ or nothing"),
        ("blood", ""),
    ],
)
def test_unsafe_terms_are_taken_out_tidily(text: str, safe: str) -> None:
    assert remove_unsafe(text) == safe


fragments = st.sampled_from(
    [
        "blood",
        "nude",
        "serial",
        "killer",
        "kill",
        "himself",
        "whale",
        "a",
        "the",
        "and",
        "or",
        ",",
        ".",
        "-",
        "_",
        "(",
        ")",
        "with",
        "floor",
        "red",
        "ball",
        "\n",
        "  ",
        "\u200b",
        "é",
        "ﬁ",
        "'",
        "blow",
        "job",
        "dead",
        "body",
    ]
)


@given(st.lists(fragments, max_size=14), st.sampled_from(["", " "]))
def test_what_is_removed_is_gone_and_nothing_is_made_up(pieces: list[str], separator: str) -> None:
    text = separator.join(pieces)
    safe = remove_unsafe(text)
    assert find_unsafe(safe) == []
    assert len(safe) <= len(text)
    remaining = iter(text)
    assert all(character == " " or character in remaining for character in safe)
    if not find_unsafe(text):
        assert safe == text


@given(st.text(max_size=80))
def test_any_text_is_handled(text: str) -> None:
    for match in find_unsafe(text):
        assert 0 <= match.start < match.end <= len(text)
    assert find_unsafe(remove_unsafe(text)) == []


def test_the_lexicon_covers_its_aspects() -> None:
    assert set(categories()) == {
        "sexual", "violence", "gore", "hate", "self_harm", "drugs", "illegal", "disturbing"
    }  # fmt: skip


def test_long_texts_are_quick() -> None:
    started = time.perf_counter()
    assert len(find_unsafe("a red ball and blood " * 5000)) == 5000
    assert time.perf_counter() - started < 3
