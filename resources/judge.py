"""Judges of prompts: text-level feedback.

Belongs here: the interface `Judge` and its backends. Does not belong here: the rules themselves (ml/rules.py) or
the reading of an LLM's verdict (ml/parsing.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from ml import rules
from ml.rules import Critique
from ml.safety_levels import OF_THE_LEXICON, SAFETY_VERSION, Aspect, SafetyRating, rate_by_lexicon
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


@dataclass(frozen=True)
class SafetyJudgement:
    """A safety rating, and the tokens that it cost; None where no language model was asked."""

    rating: SafetyRating
    prompt_tokens: int | None = None
    new_tokens: int | None = None


@runtime_checkable
class SafetyRater(Protocol):
    """A judge that also rates how safe prompts are, by aspects and levels. Judges of one's own need not."""

    def safety_identity(self) -> Identity:
        """What decides its ratings: part of the recipe of every one."""
        ...

    def rate_safety(self, prompts: Sequence[str]) -> list[Outcome[SafetyJudgement]]:
        """One rating a prompt, in order. Without a readable one there is none."""
        ...

    def aspects_looked_at(self) -> tuple[Aspect, ...]:
        """The aspects that a rating can name; of the others nothing is said."""
        ...


class RulesJudge:
    """The offline judge: fast, repeatable, and exact on the shapes world."""

    def identity(self) -> Identity:
        return {"backend": "rules", "version": rules.RULES_VERSION}

    def critique(self, queries: Sequence[str], prompts: Sequence[str]) -> list[Outcome[Judgement]]:
        return [Judgement(rules.critique(query, prompt)) for query, prompt in zip(queries, prompts, strict=True)]

    def safety_identity(self) -> Identity:
        return {"backend": "rules", "version": SAFETY_VERSION}

    def rate_safety(self, prompts: Sequence[str]) -> list[Outcome[SafetyJudgement]]:
        return [SafetyJudgement(rate_by_lexicon(prompt)) for prompt in prompts]

    def aspects_looked_at(self) -> tuple[Aspect, ...]:
        return tuple(dict.fromkeys(OF_THE_LEXICON.values()))

    def close(self) -> None:
        """Nothing to free."""


def safety_rater(judge: Judge) -> SafetyRater:
    """The judge, where it rates safety; the offline one otherwise."""
    return judge if isinstance(judge, SafetyRater) else RulesJudge()


def build_judge(settings: JudgeSettings, models: Path) -> Judge:
    """The judge that the profile names; `models` is the folder for unpacked models."""
    if isinstance(settings, RulesJudgeSettings):
        return RulesJudge()
    if isinstance(settings, OwnJudgeSettings):
        from resources.own_code import OwnJudge

        return OwnJudge(settings)
    from resources.llm_judge import LlmJudge

    return LlmJudge(settings, build_language_model(settings.language_model, models))
