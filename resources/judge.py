"""Judges of prompts: text-level feedback.

Belongs here: the interface `Judge` and its backends. Does not belong here: the rules themselves (ml/rules.py) or
the reading of an LLM's verdict (ml/parsing.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ml import rules
from ml.rules import Critique
from resources.backend_settings import JudgeSettings, OwnJudgeSettings, RulesJudgeSettings
from resources.language_model import Identity
from resources.models import build_language_model
from resources.outcome import Outcome


@dataclass(frozen=True)
class Judgement:
    """A critique, and the tokens that it cost; None where no language model was asked."""

    critique: Critique
    prompt_tokens: int | None = None
    new_tokens: int | None = None


class Judge(Protocol):
    """Criticises prompts against the queries they were written for, and refines the flawed ones."""

    def identity(self) -> Identity:
        """What decides its verdicts: part of the recipe of every critique."""
        ...

    def critique(self, queries: Sequence[str], prompts: Sequence[str]) -> list[Outcome[Judgement]]:
        """One critique a pair of query and prompt, in order. Without a readable verdict there is none."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class RulesJudge:
    """The offline judge: fast, repeatable, and exact on the shapes world."""

    def identity(self) -> Identity:
        return {"backend": "rules", "version": rules.RULES_VERSION}

    def critique(self, queries: Sequence[str], prompts: Sequence[str]) -> list[Outcome[Judgement]]:
        return [Judgement(rules.critique(query, prompt)) for query, prompt in zip(queries, prompts, strict=True)]

    def close(self) -> None:
        """Nothing to free."""


def build_judge(settings: JudgeSettings, models: Path) -> Judge:
    """The judge that the profile names; `models` is the folder for unpacked models."""
    if isinstance(settings, RulesJudgeSettings):
        return RulesJudge()
    if isinstance(settings, OwnJudgeSettings):
        from resources.own_code import OwnJudge

        return OwnJudge(settings)
    from resources.llm_judge import LlmJudge

    return LlmJudge(settings, build_language_model(settings.language_model, models))
