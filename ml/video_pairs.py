"""Preference pairs of films, for Diffusion-DPO: which film of a text is preferred to which.

Belongs here: the selection, from scores. Does not belong here: pairs of prompts (preference.py) and the training on
pairs of films (diffusion_dpo.py).
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from ml.alignment_settings import VideoPairSettings

Film = dict[str, Any]
"""A film with `video_id`, `query_id`, `query`, `prompt_id`, `prompt`, `uri`, `sha256` and `score`."""


def select_video_pairs(films: Sequence[Film], settings: VideoPairSettings) -> list[Film]:
    """Pairs in the order of their texts, at most `per_text` each, and no film in two of them.

    Of each text the films are ranked by score, ties by id: the best is chosen over the worst, the second best over the
    second worst, and so on while the scores differ by more than the margin.
    """
    key = "query_id" if settings.condition == "query" else "prompt_id"
    ordered = sorted(films, key=lambda film: (film["query_id"], film[key], -film["score"], film["video_id"]))
    return [
        pair
        for _, group in groupby(ordered, key=lambda film: (film["query_id"], film[key]))
        for pair in _pairs(list(group), settings)
    ]


def _pairs(ranked: Sequence[Film], settings: VideoPairSettings) -> Iterator[Film]:
    for place in range(min(settings.per_text, len(ranked) // 2)):
        chosen, rejected = ranked[place], ranked[-1 - place]
        margin = chosen["score"] - rejected["score"]
        if margin <= settings.margin or chosen["sha256"] == rejected["sha256"]:
            return
        text = chosen["query" if settings.condition == "query" else "prompt"]
        yield {
            "query_id": chosen["query_id"],
            "condition": settings.condition,
            "prompt": text,
            "margin": margin,
            **{f"chosen_{name}": chosen[name] for name in ("video_id", "uri", "sha256")},
            **{f"rejected_{name}": rejected[name] for name in ("video_id", "uri", "sha256")},
        }
