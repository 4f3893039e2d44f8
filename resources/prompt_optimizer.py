"""A trained prompt optimizer at work: queries in, prompts out, and nothing that fails the offline judge.

Belongs here: what `vpo optimize`, `vpo serve` and the drop-in for diffusers share. A model writes, the judge made of
rules looks at every output, and an output that fails is drawn again and then refused. Does not belong here: choosing a
checkpoint (vpo_assets/evaluation_tables.py), writing rows of the lake (vpo_assets/writing.py), or HTTP (serving/).

    pipe(prompt=optimizer("ruby pyramid heads west"))

Importing this loads no model library, and needs no Dagster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, overload

from ml import rules, templates
from ml.curation import clean, parse_tags
from ml.parsing import strip_introduction
from resources.backend_settings import (
    PolicySettings,
    TransformersModelSettings,
    VllmModelSettings,
)
from resources.language_model import LanguageModel, Reply, Sampling
from resources.models import build_language_model
from resources.optimizer_settings import OptimizerSettings, read_optimizer
from resources.outcome import Outcome, Skipped, Unavailable
from resources.settings import Profile, load_profile
from resources.shared_storage import checkpoint_store
from storage.checkpoints import BrokenCheckpoint
from storage.ids import seed_of

Backend = Literal["transformers", "vllm"]
ALWAYS_REFUSED = frozenset({"unsafe", "refusal"})
SHOWN = 80  # characters of a query in a message


class UnusableQuery(ValueError):
    """A query that there is nothing to optimize in, or that the model cannot take; says why."""


class RefusedOutput(RuntimeError):
    """Every output for a query failed the offline judge. `reason`: what it said of the last one; `verdict`: unsafe,
    refusal or imprecise; `attempts`: how many were drawn; `usage`: tokens read and written for them."""

    def __init__(self, query: str, verdict: str, reason: str, attempts: int, usage: tuple[int, int] = (0, 0)) -> None:
        drawn = "the output" if attempts == 1 else f"each of {attempts} outputs"
        super().__init__(f"{drawn} for {_shown(query)} was refused as {verdict}: {reason}")
        self.verdict = verdict
        self.reason = reason
        self.attempts = attempts
        self.usage = usage


class UnknownCheckpoint(ValueError):
    """A checkpoint that is not there, or a target that it cannot be sampled for; says what there is."""


@dataclass(frozen=True)
class Ask:
    """One prompt that is wanted.

    query: as the user wrote it. sampling, seed: None for the optimizer's own. choice: the number of the prompt among
    several for one query; each has a seed of its own.
    """

    query: str
    sampling: Sampling | None = None
    seed: int | None = None
    choice: int = 0


@dataclass(frozen=True)
class OptimizedPrompt:
    """A prompt that the judge lets pass, in one line. whole: False where the model ran out of tokens. attempts: outputs
    that were drawn for it. The token counts are those of all attempts together."""

    prompt: str
    whole: bool = True
    attempts: int = 1
    prompt_tokens: int = 0
    new_tokens: int = 0


Answer: TypeAlias = OptimizedPrompt | UnusableQuery | RefusedOutput
"""What became of one ask. Errors are values here: one bad query takes nothing from the others."""


@dataclass
class _Draw:
    """An ask under way: what the model is given, and what was drawn so far."""

    place: int
    ask: Ask
    text: str
    sampling: Sampling
    attempts: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0

    def seed(self, name: str, seed: int) -> int:
        """The seed of the next attempt: the same for the same ask, on every machine."""
        own = str(seed if self.ask.seed is None else self.ask.seed)
        if self.ask.choice == 0 and self.attempts == 0:
            return seed_of(self.text, name, own)
        return seed_of(self.text, name, own, str(self.ask.choice), str(self.attempts))


class PromptOptimizer:
    """One checkpoint, loaded when it is first used.

    Called with a query it returns the prompt, called with a list the list of prompts, ready for a diffusers pipeline.
    The same query and seed give the same prompt again. Tags (`-ar 16:9`) are for the video model's settings, and are
    left out. Not to be called from several threads at once.
    """

    def __init__(self, model: LanguageModel, settings: OptimizerSettings) -> None:
        self.model = model
        self.settings = settings
        self._template = settings.optimize_template()

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        backend: Backend = "transformers",
        device: str = "auto",
        batch_size: int = 32,
    ) -> PromptOptimizer:
        """The optimizer of a published model folder; needs no profile and no home.

        Raises NoOptimizer for a folder that is none.
        """
        path = Path(folder).expanduser()
        settings = read_optimizer(path)
        chosen: PolicySettings = (
            VllmModelSettings(model=str(path), dtype=settings.dtype)
            if backend == "vllm"
            else TransformersModelSettings(model=str(path), dtype=settings.dtype, device=device, batch_size=batch_size)
        )
        return cls(build_language_model(chosen, path, weights=path, name=settings.name), settings)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint_id: str,
        *,
        home: str | Path | None = None,
        profile: str | None = None,
        target: str | None = None,
        backend: Backend | None = None,
    ) -> PromptOptimizer:
        """The optimizer of a checkpoint in a home folder (default: that of the profile, as `vpo` takes it).

        Raises UnknownCheckpoint, and SettingsError for a profile that cannot be used.
        """
        chosen = load_profile(profile)
        if home is not None:
            chosen = chosen.model_copy(update={"home": Path(home).expanduser().resolve()})
        store = checkpoint_store(chosen.home, chosen.checkpoints, chosen.object_store)
        try:
            path, manifest = store.load(checkpoint_id)
        except (BrokenCheckpoint, ValueError) as error:
            raise UnknownCheckpoint(str(error)) from error
        target = manifest.target if target is None else target
        settings = optimizer_settings(chosen, checkpoint_id, target)
        policy = with_backend(chosen.trained_model, backend)
        model = build_language_model(policy, chosen.home / "models", weights=path, name=checkpoint_id)
        return cls(model, settings)

    @overload
    def __call__(self, query: str) -> str: ...

    @overload
    def __call__(self, query: list[str] | tuple[str, ...]) -> list[str]: ...

    def __call__(self, query: str | list[str] | tuple[str, ...]) -> str | list[str]:
        """The prompt for a query, or the prompts for several, in order. Raises UnusableQuery, RefusedOutput and
        Unavailable; of several queries a note on the error says which one it was."""
        if isinstance(query, str):
            return self._prompt(self.answer([Ask(query)])[0])
        answers = self.answer([Ask(one) for one in query])
        for number, answer in enumerate(answers, start=1):
            if isinstance(answer, Exception):
                answer.add_note(f"query {number} of {len(answers)}")
        return [self._prompt(answer) for answer in answers]

    def answer(self, asks: Sequence[Ask]) -> list[Answer]:
        """What becomes of each ask, in order; asks that are drawn alike go through the model together. Raises
        Unavailable where the model cannot work at all."""
        answers: dict[int, Answer] = {}
        waiting: list[_Draw] = []
        for place, ask in enumerate(asks):
            try:
                text = usable(ask.query)
            except UnusableQuery as error:
                answers[place] = error
            else:
                waiting.append(_Draw(place, ask, text, ask.sampling or self.settings.sampling.sampling()))
        while waiting:
            again: list[_Draw] = []
            for draw, outcome in self._drawn(waiting):
                answer = self._judged(draw, outcome)
                if answer is None:
                    again.append(draw)
                else:
                    answers[draw.place] = answer
            waiting = again
        return [answers[place] for place in range(len(asks))]

    def close(self) -> None:
        """Free the model's memory; the next call loads it again."""
        self.model.close()

    def _drawn(self, draws: Sequence[_Draw]) -> list[tuple[_Draw, Outcome[Reply]]]:
        """One output each."""
        alike: dict[Sampling, list[_Draw]] = {}
        for draw in draws:
            alike.setdefault(draw.sampling, []).append(draw)
        drawn: list[tuple[_Draw, Outcome[Reply]]] = []
        for sampling, group in alike.items():
            conversations = [self._template.messages(query=draw.text) for draw in group]
            seeds = [draw.seed(self.settings.name, self.settings.seed) for draw in group]
            drawn += zip(group, self.model.generate(conversations, sampling, seeds), strict=True)
        return drawn

    def _judged(self, draw: _Draw, outcome: Outcome[Reply]) -> Answer | None:
        """The answer, or None if another output is to be drawn."""
        if isinstance(outcome, Skipped):
            raise Unavailable(outcome.reason)
        if not isinstance(outcome, Reply):
            return UnusableQuery(outcome.reason)
        draw.attempts += 1
        draw.prompt_tokens += outcome.prompt_tokens
        draw.new_tokens += outcome.new_tokens
        prompt = " ".join(strip_introduction(outcome.text).split())  # as the evaluation reads what was written
        critique = rules.critique(draw.text, prompt)
        safety = self.settings.safety
        if critique.verdict not in ALWAYS_REFUSED and not (safety.refuse_imprecise and critique.verdict == "imprecise"):
            return OptimizedPrompt(prompt, outcome.whole, draw.attempts, draw.prompt_tokens, draw.new_tokens)
        # What is drawn without chance comes out the same again.
        if draw.attempts <= safety.retries and draw.sampling.temperature > 0:
            return None
        used = (draw.prompt_tokens, draw.new_tokens)
        return RefusedOutput(draw.ask.query, critique.verdict, critique.critique, draw.attempts, used)

    @staticmethod
    def _prompt(answer: Answer) -> str:
        if isinstance(answer, Exception):
            raise answer
        return answer.prompt


def usable(query: str) -> str:
    """What there is to optimize in a query: its text, cleaned and without tags. Raises UnusableQuery."""
    try:
        query.encode()
    except UnicodeEncodeError:
        raise UnusableQuery(f"{_shown(query)} holds half of a character (a lone surrogate)") from None
    text, _ = parse_tags(clean(query))
    if not text.strip():
        raise UnusableQuery(f"there is nothing to optimize in {_shown(query)}")
    return text


def optimizer_settings(profile: Profile, checkpoint_id: str, target: str | None) -> OptimizerSettings:
    """How a profile has a checkpoint work: sampled as in the evaluation of its target (None: the
    only one that is evaluated). Raises
    UnknownCheckpoint if that is not clear, TemplateProblem."""
    targets = list(profile.targets)
    evaluated = [name for name in targets if profile.targets[name].evaluated]
    chosen = target or (evaluated[0] if len(evaluated) == 1 else None)
    if chosen not in targets:
        asked = f"is of target {target[:SHOWN]!r}, which the profile lacks" if target else "serves several targets"
        raise UnknownCheckpoint(f"checkpoint {checkpoint_id} {asked}; name one of {', '.join(targets)}")
    return OptimizerSettings(
        name=checkpoint_id,
        template=templates.load("optimize", profile.templates).source,
        sampling=profile.targets[chosen].evaluation.sampling,
        safety=profile.safety,
        dtype=profile.trained_model.dtype,
        seed=profile.seed,
    )


def with_backend(policy: PolicySettings, backend: Backend | None) -> PolicySettings:
    """The same model under another backend; its other settings are then that backend's defaults."""
    if backend is None or backend == policy.backend:
        return policy
    kind = VllmModelSettings if backend == "vllm" else TransformersModelSettings
    return kind(model=policy.model, revision=policy.revision, dtype=policy.dtype)


def _shown(query: str) -> str:
    """The beginning of a query for a message, as text that hides nothing."""
    return ascii(query[:SHOWN]) if not query[:SHOWN].isprintable() else repr(query[:SHOWN])
