"""Judges of prompts: text-level feedback.

Belongs here: the interface `Judge` and its backends. Does not belong here: the rules themselves (ml/rules.py) or
the reading of an LLM's verdict (ml/parsing.py).
"""

from collections.abc import Sequence
from typing import Protocol

from ml import rules
from ml.rules import Critique
from resources.language_model import Identity
from resources.settings import JudgeSettings


class Judge(Protocol):
    """Criticises prompts against the queries they were written for, and refines the flawed ones."""

    def identity(self) -> Identity:
        """What decides its verdicts: part of the recipe of every critique."""
        ...

    def critique(self, queries: Sequence[str], prompts: Sequence[str]) -> list[Critique]:
        """One critique a pair of query and prompt, in order."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class RulesJudge:
    """The offline judge: fast, repeatable, and exact on the shapes world."""

    def identity(self) -> Identity:
        return {"backend": "rules", "version": rules.RULES_VERSION}

    def critique(self, queries: Sequence[str], prompts: Sequence[str]) -> list[Critique]:
        return [rules.critique(query, prompt) for query, prompt in zip(queries, prompts, strict=True)]

    def close(self) -> None:
        """Nothing to free."""


def build_judge(settings: JudgeSettings) -> Judge:
    """The judge that the profile names."""
    del settings  # one backend so far
    return RulesJudge()
