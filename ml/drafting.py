"""Few-shot drafting: which worked examples a language model is shown with a query.

Belongs here: reading the bank of examples and choosing from it. Does not belong here: the template that the
examples are shown in (ml/templates) or running a model.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_WORD = re.compile(r"\w+")


class UnusableExamples(ValueError):
    """A bank of examples that cannot be read, with file and line."""


@dataclass(frozen=True)
class Example:
    """One query and a prompt that does it justice."""

    query: str
    prompt: str


def load_examples(path: Path) -> tuple[Example, ...]:
    """Read JSON lines with `query` and `prompt`, both non-empty strings."""
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            example = Example(query=row["query"], prompt=row["prompt"])
        except (ValueError, KeyError, TypeError) as error:
            raise UnusableExamples(f"{path} line {number}: needs an object with query and prompt ({error})") from error
        if not all(isinstance(text, str) and text for text in (example.query, example.prompt)):
            raise UnusableExamples(f"{path} line {number}: query and prompt must be non-empty strings")
        examples.append(example)
    if not examples:
        raise UnusableExamples(f"{path} holds no examples")
    return tuple(examples)


def choose_examples(query: str, bank: Sequence[Example], count: int) -> list[Example]:
    """The `count` examples that together share most words with the query, the closest one last.

    A small model copies what stands nearest; so every word of the query that the bank knows is shown at work.
    Ties are broken by the bank's order: the same query always sees the same examples.
    """
    wanted = set(_WORD.findall(query.lower()))
    words = [set(_WORD.findall(example.query.lower())) & wanted for example in bank]
    uncovered, left = set(wanted), list(range(len(bank)))
    chosen: list[int] = []
    while left and len(chosen) < count:
        best = max(left, key=lambda i: (len(words[i] & uncovered), len(words[i]), -i))
        chosen.append(best)
        left.remove(best)
        uncovered = uncovered - words[best] or set(wanted)
    return [bank[i] for i in sorted(chosen, key=lambda i: (len(words[i]), -i))]
