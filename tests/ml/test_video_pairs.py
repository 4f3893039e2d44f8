"""Pairs of films: which is preferred to which."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml.alignment_settings import VideoPairSettings
from ml.video_pairs import select_video_pairs


def film(query: str, prompt: str, seed: int, score: float) -> dict[str, Any]:
    name = f"{query}-{prompt}-{seed}"
    return {
        "video_id": name,
        "query_id": query,
        "query": f"query {query}",
        "prompt_id": f"{query}-{prompt}",
        "prompt": f"prompt {query} {prompt}",
        "uri": f"{name}.webp",
        "sha256": name,
        "score": score,
    }


FILMS = [
    film("b", "x", 0, 3.0),
    film("b", "x", 1, 1.0),
    film("b", "y", 0, 4.0),
    film("b", "y", 1, 3.5),
    film("a", "x", 0, 2.0),
    film("a", "y", 0, 2.5),
]


def chosen_and_rejected(**settings: Any) -> list[tuple[str, str, str, float]]:
    pairs = select_video_pairs(FILMS, VideoPairSettings(**settings))
    return [(p["prompt"], p["chosen_video_id"], p["rejected_video_id"], p["margin"]) for p in pairs]


def test_of_a_query_the_best_film_is_preferred_to_the_worst_whatever_their_prompts() -> None:
    assert chosen_and_rejected(condition="query", margin=0.0) == [
        ("query a", "a-y-0", "a-x-0", 0.5),
        ("query b", "b-y-0", "b-x-1", 3.0),
    ]


def test_the_next_best_follow_while_they_differ_by_more_than_the_margin() -> None:
    assert chosen_and_rejected(condition="query", margin=0.4, per_text=9) == [
        ("query a", "a-y-0", "a-x-0", 0.5),
        ("query b", "b-y-0", "b-x-1", 3.0),
        ("query b", "b-y-1", "b-x-0", 0.5),
    ]
    assert [pair[0] for pair in chosen_and_rejected(condition="query", margin=0.5, per_text=9)] == ["query b"]


def test_of_a_prompt_only_its_own_seeds_are_compared() -> None:
    assert chosen_and_rejected(condition="prompt", margin=0.5) == [("prompt b x", "b-x-0", "b-x-1", 2.0)]


def test_a_film_is_not_preferred_to_the_very_same_pixels() -> None:
    same = [{**film("a", "x", seed, score), "sha256": "same"} for seed, score in enumerate((1.0, 3.0))]
    assert select_video_pairs(same, VideoPairSettings()) == []


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.integers(0, 8)), max_size=20),
    st.sampled_from(["query", "prompt"]),
    st.integers(1, 5),
)
def test_no_film_is_in_two_pairs_and_every_chosen_one_is_better(
    drawn: list[tuple[str, str, int]], condition: Any, per_text: int
) -> None:
    films = [film(query, prompt, number, score / 2) for number, (query, prompt, score) in enumerate(drawn)]
    settings = VideoPairSettings(condition=condition, margin=0.5, per_text=per_text)
    pairs = select_video_pairs(films, settings)
    used = [pair[f"{side}_video_id"] for pair in pairs for side in ("chosen", "rejected")]
    assert len(used) == len(set(used))
    scores = {one["video_id"]: one["score"] for one in films}
    for pair in pairs:
        assert scores[pair["chosen_video_id"]] - scores[pair["rejected_video_id"]] == pytest.approx(pair["margin"])
        assert pair["margin"] > 0.5
    assert pairs == select_video_pairs(films[::-1], settings)
