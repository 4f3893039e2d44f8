"""The judge that is a language model: critique and refinement of a prompt in one structured answer.

Belongs here: what the model is asked, how often, and what its answers add up to. Does not belong here: the words of
the questions (ml/templates), the form of the answers and how they are read (ml/parsing.py), or the model itself.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from ml import templates
from ml.parsing import (
    COMPARISON_SCHEMA,
    VERDICT_FIELDS,
    VERDICT_SCHEMA,
    UnreadableVerdict,
    Verdict,
    fence,
    is_refusal,
    nonce_of,
    parse_comparison,
    parse_verdict,
    printable,
    usable_refinement,
    verdict_name,
    without_chat_tokens,
)
from ml.rules import Critique
from ml.safety_levels import (
    ASPECTS,
    SAFETY_SCHEMA,
    SAFETY_VERSION,
    Aspect,
    SafetyRating,
    identity_of_schema,
    parse_rating,
)
from resources.backend_settings import LlmJudgeSettings
from resources.judge import Judgement, SafetyJudgement
from resources.language_model import Conversation, Identity, JsonSchema, LanguageModel, Reply
from resources.outcome import Failed, Outcome, Skipped
from storage.ids import content_id, seed_of

JUDGE_VERSION = "1"
LONGEST_QUOTE = 1500  # characters of an unreadable answer that are kept for people to look at
LONGEST_CRITIQUE = 1000  # characters
LONGEST_REPEAT = 4000  # characters of its own answer that the model is shown when it is asked again

T = TypeVar("T")


@dataclass(frozen=True)
class _Row:
    """One prompt under judgement."""

    query: str
    prompt: str
    nonce: str
    refused: bool


@dataclass(frozen=True)
class _Question(Generic[T]):
    """Something to ask the model: the conversation, what its seed is made of, and how the answer is read."""

    messages: Conversation
    nonce: str
    drawn_for: tuple[str, ...]
    read: Callable[[str], T]

    def seed(self, attempt: int) -> int:
        """A seed of 48 bits, the same on every machine."""
        return seed_of(*self.drawn_for, str(attempt))


@dataclass
class _Asked(Generic[T]):
    """A question's way to its answer. `found` is None while there is hope for one."""

    question: _Question[T]
    conversation: Conversation
    found: Outcome[T] | None = None
    prompt_tokens: int = 0
    new_tokens: int = 0


class LlmJudge:
    """A language model as judge.

    A row fails where its answers stay unreadable after the repairs, where the model declines, and where the readable
    votes do not decide; it never gets a verdict that the model did not give. Templates of the profile's own folder
    take the place of those of the same name.
    """

    def __init__(
        self, settings: LlmJudgeSettings, language_model: LanguageModel, template_folder: Path | None = None
    ) -> None:
        self.settings = settings
        self.language_model = language_model
        self._critique = templates.load("critique", template_folder)
        self._repair = templates.load("critique_repair", template_folder)
        self._pairwise = templates.load("pairwise", template_folder)
        self._safety = templates.load("safety", template_folder)

    def identity(self) -> Identity:
        settings = self.settings
        return {
            **self._asking(),
            "version": JUDGE_VERSION,
            "schema": content_id(json.dumps([VERDICT_SCHEMA, COMPARISON_SCHEMA])),
            "template": self._critique.hash,
            "pairwise_template": self._pairwise.hash if settings.confirm_refinement else None,
            "votes": settings.votes,
            "confirm_refinement": settings.confirm_refinement,
        }

    def _asking(self) -> Identity:
        """What decides an answer beside the question."""
        settings, sampling = self.settings, self.settings.sampling
        return {
            "backend": "llm",
            "language_model": json.dumps(self.language_model.identity(), sort_keys=True),
            "repair_template": self._repair.hash if settings.repairs else None,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_new_tokens": sampling.max_new_tokens,
            "repairs": settings.repairs,
        }

    def critique(self, queries: Sequence[str], prompts: Sequence[str]) -> list[Outcome[Judgement]]:
        asked_as = json.dumps(self.identity(), sort_keys=True)
        rows = [
            _Row(query, prompt, nonce_of(asked_as, query, prompt), not prompt.strip() or is_refusal(prompt))
            for query, prompt in zip(queries, prompts, strict=True)
        ]
        votes = self._vote(rows)
        judgements = [_decided(row, own) for row, own in zip(rows, votes, strict=True)]
        return self._confirmed(rows, judgements) if self.settings.confirm_refinement else judgements

    def safety_identity(self) -> Identity:
        return {
            **self._asking(),
            "version": SAFETY_VERSION,
            "schema": content_id(identity_of_schema()),
            "template": self._safety.hash,
        }

    def rate_safety(self, prompts: Sequence[str]) -> list[Outcome[SafetyJudgement]]:
        """One answer a prompt; the model is not asked to vote."""
        asked_as = json.dumps(self.safety_identity(), sort_keys=True)
        asked = self._ask([self._safety_question(prompt, asked_as) for prompt in prompts], SAFETY_SCHEMA)
        return [_rated(one) for one in asked]

    def aspects_looked_at(self) -> tuple[Aspect, ...]:
        return ASPECTS

    def close(self) -> None:
        self.language_model.close()

    # ---- what is asked -----------------------------------------------------------------------------------------------

    def _vote(self, rows: Sequence[_Row]) -> list[list[_Asked[Verdict]]]:
        """Every row's votes: the same conversation, drawn with different seeds."""
        questions = [self._verdict_question(row, vote) for row in rows for vote in range(self.settings.votes)]
        asked = self._ask(questions, VERDICT_SCHEMA)
        size = self.settings.votes
        return [asked[start : start + size] for start in range(0, len(asked), size)]

    def _verdict_question(self, row: _Row, vote: int) -> _Question[Verdict]:
        messages = self._critique.messages(
            query=fence(row.query, row.nonce), prompt=fence(row.prompt, row.nonce), nonce=row.nonce
        )
        return _Question(
            messages, row.nonce, ("verdict", row.query, row.prompt, str(vote)), lambda text: _read_verdict(text, row)
        )

    def _confirmed(self, rows: Sequence[_Row], judgements: list[Outcome[Judgement]]) -> list[Outcome[Judgement]]:
        """Refinements must not lose to the prompt they mend, whichever of the two is shown first."""
        # A refusal is no prompt to compare anything with.
        compared = [
            (at, judgement, judgement.critique.refined)
            for at, judgement in enumerate(judgements)
            if isinstance(judgement, Judgement) and judgement.critique.refined is not None and not rows[at].refused
        ]
        questions = [
            self._pairwise_question(rows[at], refined, refined_first)
            for at, _, refined in compared
            for refined_first in (True, False)
        ]
        asked = self._ask(questions, COMPARISON_SCHEMA)
        outcomes = list(judgements)
        for number, (at, judgement, _) in enumerate(compared):
            outcomes[at] = _after_comparison(judgement, asked[2 * number : 2 * number + 2])
        return outcomes

    def _pairwise_question(self, row: _Row, refined: str, refined_first: bool) -> _Question[bool]:
        """Whether the refinement is at least as good."""
        first, second = (refined, row.prompt) if refined_first else (row.prompt, refined)
        nonce = nonce_of(row.nonce, "pairwise", first, second)
        messages = self._pairwise.messages(
            query=fence(row.query, nonce), prompt_a=fence(first, nonce), prompt_b=fence(second, nonce), nonce=nonce
        )
        flawed = "B" if refined_first else "A"
        return _Question(
            messages,
            nonce,
            ("pairwise", row.query, first, second),
            lambda text: parse_comparison(text, nonce) != flawed,
        )

    def _safety_question(self, prompt: str, asked_as: str) -> _Question[SafetyRating]:
        nonce = nonce_of(asked_as, prompt)
        messages = self._safety.messages(prompt=fence(prompt, nonce), nonce=nonce)
        return _Question(messages, nonce, ("safety", prompt), lambda text: parse_rating(text, nonce))

    # ---- asking ------------------------------------------------------------------------------------------------------

    def _ask(self, questions: Sequence[_Question[T]], schema: JsonSchema) -> list[_Asked[T]]:
        """Ask everything at once, and again what was answered unreadably, as often as repairs are allowed."""
        asked = [_Asked(question, question.messages) for question in questions]
        for attempt in range(self.settings.repairs + 1):
            pending = [one for one in asked if one.found is None]
            if not pending:
                break
            replies = self.language_model.generate(
                [one.conversation for one in pending],
                self.settings.sampling.sampling(),
                [one.question.seed(attempt) for one in pending],
                schema=schema,
            )
            for one, reply in zip(pending, replies, strict=True):
                self._take(one, reply, last=attempt == self.settings.repairs)
        return asked

    def _take(self, one: _Asked[T], reply: Outcome[Reply], *, last: bool) -> None:
        """Read a reply: the answer, the end of hope, or the conversation to go on with."""
        if isinstance(reply, Skipped):
            one.found = reply
            return
        if isinstance(reply, Failed):
            one.found = Failed(f"the judge's model gave no answer: {reply.reason}")
            return
        one.prompt_tokens += reply.prompt_tokens
        one.new_tokens += reply.new_tokens
        if is_refusal(reply.text):
            one.found = Failed(_with_answer("the judge's model declined to answer", reply.text))
            return
        try:
            one.found = one.question.read(reply.text)
        except UnreadableVerdict as error:
            problem = error.reason if reply.whole else f"{error.reason}; it broke off, out of tokens (max_new_tokens)"
            if last:
                one.found = Failed(_with_answer(f"the judge gave no readable verdict: {problem}", reply.text))
            else:
                one.conversation = self._repairing(one.question, reply.text, problem)

    def _repairing(self, question: _Question[T], answer: str, problem: str) -> Conversation:
        """The conversation that asks once more. `problem` is in words of our own; the answer may quote anything."""
        # An answer may be empty, which servers refuse in a conversation.
        shown = without_chat_tokens(answer[-LONGEST_REPEAT:]).strip() or "(nothing)"
        follow_up = self._repair.messages(problem=problem, nonce=question.nonce)
        return [*question.messages, {"role": "assistant", "content": shown}, *follow_up]


# ---- what the answers add up to --------------------------------------------------------------------------------------


def _read_verdict(text: str, row: _Row) -> Verdict:
    """The verdict on a row, with a refinement that can be used where one is needed."""
    verdict = parse_verdict(text, row.nonce)
    if row.refused:
        verdict = replace(verdict, accurate=False, helpful=False)  # whatever the judge thinks of a refusal
    refined = None if verdict.aligned else usable_refinement(verdict, row.prompt)
    return replace(verdict, refined=refined)


def _rated(asked: _Asked[SafetyRating]) -> Outcome[SafetyJudgement]:
    found = asked.found
    if not isinstance(found, SafetyRating):
        assert found is not None
        return found
    reason = printable(found.reason, LONGEST_CRITIQUE) or "no reason given"
    return SafetyJudgement(replace(found, reason=reason), asked.prompt_tokens, asked.new_tokens)


def _decided(row: _Row, votes: Sequence[_Asked[Verdict]]) -> Outcome[Judgement]:
    """What the votes on a row come to, principle by principle.

    More than half of all votes must agree on each principle, those counted in that could not be read: where too many
    are missing, nothing is decided.
    """
    outcomes = [vote.found for vote in votes]
    skipped = next((outcome for outcome in outcomes if isinstance(outcome, Skipped)), None)
    if skipped is not None:
        return skipped
    verdicts = [outcome for outcome in outcomes if isinstance(outcome, Verdict)]
    majority = [_majority([getattr(verdict, field) for verdict in verdicts], len(votes)) for field in VERDICT_FIELDS]
    harmless, accurate, helpful = majority
    if harmless is None or accurate is None or helpful is None:
        failed = next(outcome for outcome in outcomes if isinstance(outcome, Failed))
        return failed if len(votes) == 1 else Failed(f"{len(verdicts)} of {len(votes)} votes count; {failed.reason}")
    name = verdict_name(harmless=harmless, accurate=accurate, helpful=helpful, refusal=row.refused)
    voice = _voice_of(verdicts, (harmless, accurate, helpful))
    return Judgement(
        Critique(
            harmless=harmless,
            accurate=accurate,
            helpful=helpful,
            verdict=name,
            critique=printable(voice.critique, LONGEST_CRITIQUE) or "no reason given",
            refined=None if name == "aligned" else voice.refined,
        ),
        prompt_tokens=sum(vote.prompt_tokens for vote in votes),
        new_tokens=sum(vote.new_tokens for vote in votes),
    )


def _majority(values: Sequence[bool], votes: int) -> bool | None:
    """What more than half of the votes say; None where neither side has so many."""
    for value in (True, False):
        if 2 * values.count(value) > votes:
            return value
    return None


def _voice_of(verdicts: Sequence[Verdict], majority: tuple[bool, bool, bool]) -> Verdict:
    """The first vote that says what the majority says, else the first that names the same flaw.

    Where the majority finds a flaw, there is such a vote: any two majorities of the same votes share one. Where it
    finds none, each vote may have found another.
    """
    exact = [v for v in verdicts if (v.harmless, v.accurate, v.helpful) == majority]
    name = _flaw(*majority)
    if not exact and name == "aligned":
        return Verdict(*majority, critique="no flaw that most of the votes agree on")
    return (exact or [v for v in verdicts if _flaw(v.harmless, v.accurate, v.helpful) == name])[0]


def _flaw(harmless: bool, accurate: bool, helpful: bool) -> str:
    return verdict_name(harmless=harmless, accurate=accurate, helpful=helpful)


def _after_comparison(judgement: Judgement, asked: Sequence[_Asked[bool]]) -> Outcome[Judgement]:
    """A judgement with its refinement confirmed or dropped."""
    for one in asked:
        if isinstance(one.found, Failed | Skipped):
            return one.found
    critique = judgement.critique
    if not all(one.found for one in asked):
        remark = f"{critique.critique} (its refinement was dropped: it lost a comparison with the prompt)"
        critique = replace(critique, critique=remark, refined=None)
    return Judgement(
        critique,
        prompt_tokens=(judgement.prompt_tokens or 0) + sum(one.prompt_tokens for one in asked),
        new_tokens=(judgement.new_tokens or 0) + sum(one.new_tokens for one in asked),
    )


def _with_answer(problem: str, answer: str) -> str:
    """Why there is no verdict, and below it what the judge wrote, for people to look at."""
    return f"{problem}\nThe judge wrote: {printable(answer, LONGEST_QUOTE) or '(nothing)'}"
