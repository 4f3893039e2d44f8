"""What a method's prompts are like, whatever a reward says of them.

A policy that is optimized too far gets a better reward for worse prompts: longer ones, all alike, full of phrases that
the reward likes, and further from what was asked for. These figures see that, and none of them is optimized.

Belongs here: the figures, with intervals. Does not belong here: verdicts (rules.py, a judge) or rewards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from ml.metrics import Interval, bootstrap_interval, distinct_n, self_bleu
from ml.rules import faithfulness, repeats_itself
from ml.safety import find_unsafe


@dataclass(frozen=True)
class PromptStatistics:
    """Of one method's prompts. words: number of words. faithful: share 0..1 of what the query asks for that the prompt
    says (ml.rules.faithfulness). repeating, cut, unsafe_terms: share 0..1 of prompts that repeat themselves, that were
    broken off at the limit of tokens (of those where that is known), that have a term of the unsafe lexicon in them.
    distinct_2: distinct pairs of words / all, None where there is no pair. self_bleu: how alike the prompts are, 0..1;
    None for fewer than two."""

    method: str
    words: Interval
    faithful: Interval
    repeating: Interval
    cut: Interval
    unsafe_terms: Interval
    distinct_2: float | None
    self_bleu: float | None
    n: int


def prompt_statistics(prompts: pa.Table, *, seed: int = 0) -> list[PromptStatistics]:
    """`prompts` has method, query, prompt and cut (true, false or null); methods in order of occurrence."""
    columns = [prompts[name].to_pylist() for name in ("method", "query", "prompt", "cut")]
    by_method: dict[str, list[tuple[str, str, bool | None]]] = {}
    for method, query, prompt, cut in zip(*columns, strict=True):
        by_method.setdefault(method, []).append((query, prompt, cut))
    return [_of_method(method, rows, seed) for method, rows in by_method.items()]


def _of_method(method: str, rows: Sequence[tuple[str, str, bool | None]], seed: int) -> PromptStatistics:
    texts = [prompt for _, prompt, _ in rows]
    distinct = distinct_n(texts)

    def mean(values: Sequence[float]) -> Interval:
        return bootstrap_interval(values, seed=seed)

    return PromptStatistics(
        method=method,
        words=mean([len(text.split()) for text in texts]),
        faithful=mean([faithfulness(query, prompt) for query, prompt, _ in rows]),
        repeating=mean([float(repeats_itself(text)) for text in texts]),
        cut=mean([float(cut) for _, _, cut in rows if cut is not None]),
        unsafe_terms=mean([float(bool(find_unsafe(text))) for text in texts]),
        distinct_2=None if math.isnan(distinct) else distinct,
        self_bleu=self_bleu(texts, seed=seed),
        n=len(rows),
    )
