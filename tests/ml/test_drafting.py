from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml import templates
from ml.drafting import Example, UnusableExamples, choose_examples, load_examples

BANK = tuple(
    Example(query, f"A prompt about {query}.")
    for query in ("red ball rolls", "blue ball", "a cat", "the cat sleeps", "rain", "red rain falls slowly")
)


def written(folder: Path, text: str) -> Path:
    file = folder / "examples.jsonl"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_bundled_bank_is_read_whole() -> None:
    file = Path(templates.__file__).parent / "few_shot_examples.jsonl"
    bank = load_examples(file)
    assert len(bank) == len(file.read_text(encoding="utf-8").splitlines())
    assert len({example.query for example in bank}) > 0.9 * len(bank)


def test_blank_lines_are_stepped_over(tmp_path: Path) -> None:
    file = written(tmp_path, '\n{"query": "a", "prompt": "b"}\n\n{"query": "c", "prompt": "d", "note": 1}\n')
    assert load_examples(file) == (Example("a", "b"), Example("c", "d"))


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        "17",
        '{"query": "a"}',
        '{"prompt": "a"}',
        '{"query": 1, "prompt": "b"}',
        '{"query": "a", "prompt": null}',
        '{"query": "", "prompt": "b"}',
        '{"query": "a", "prompt": ""}',
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    file = written(tmp_path, f'{{"query": "a", "prompt": "b"}}\n{line}\n')
    with pytest.raises(UnusableExamples, match="line 2") as caught:
        load_examples(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_bank_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableExamples, match="no examples"):
        load_examples(written(tmp_path, "\n\n"))


def test_every_word_of_the_query_that_the_bank_knows_is_shown() -> None:
    chosen = choose_examples("Red CAT sleeps", BANK, 2)
    assert {example.query for example in chosen} >= {"the cat sleeps"}
    assert {word for example in chosen for word in example.query.split()} >= {"red", "cat", "sleeps"}


def test_the_closest_example_stands_last() -> None:
    assert choose_examples("red ball rolls away", BANK, 3)[-1].query == "red ball rolls"


queries = st.lists(st.sampled_from(["red", "ball", "cat", "the", "rain", "dog", "slowly", "!"]), max_size=6).map(
    " ".join
)


@given(queries | st.text(max_size=60), st.integers(0, 9))
def test_as_many_as_asked_for_all_different_and_always_the_same(query: str, count: int) -> None:
    chosen = choose_examples(query, BANK, count)
    assert len(chosen) == len(set(chosen)) == min(count, len(BANK))
    assert choose_examples(query, BANK, count) == chosen
    shared = [len(set(query.lower().split()) & set(example.query.split())) for example in chosen]
    assert (
        query.strip(" !") == ""
        or not query.isascii()
        or "!" in query
        or not query.islower()
        or shared == sorted(shared)
    )


def test_nothing_to_choose_from_is_nothing_chosen() -> None:
    assert choose_examples("a cat", (), 3) == []
