"""Language models that write: conversations in, replies out.

Belongs here: the interface `LanguageModel` and what passes through it. Does not belong here: the backends
(transformers_model.py, vllm_model.py, endpoint_model.py), what is asked of a model (ml/templates), or what becomes of
its replies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from resources.outcome import Outcome

Message = dict[str, str]
Conversation = Sequence[Message]
Identity = dict[str, str | int | float | bool | None]
JsonSchema = Mapping[str, Any]


@dataclass(frozen=True)
class Sampling:
    """How texts are drawn. Temperature 0 is greedy. The defaults are the paper's at inference."""

    temperature: float = 0.7
    top_p: float = 1.0
    max_new_tokens: int = 96


@dataclass(frozen=True)
class Reply:
    """What a model wrote. `whole` is False where it ran out of tokens; token counts are the backend's own."""

    text: str
    whole: bool = True
    prompt_tokens: int = 0
    new_tokens: int = 0


class LanguageModel(Protocol):
    """A language model that answers conversations."""

    def identity(self) -> Identity:
        """What decides its replies beside the sampling: part of the recipe of every row it makes."""
        ...

    def generate(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        seeds: Sequence[int],
        *,
        schema: JsonSchema | None = None,
    ) -> list[Outcome[Reply]]:
        """One reply a conversation, in order; the same conversation with n seeds gives n samples.

        Backends that run the model themselves give the same reply for the same conversation, sampling and seed. With
        a schema, a backend that can makes the model answer in JSON of that schema; the others leave that to the
        conversation, so a caller checks what it gets. A conversation that the model cannot take is a Failed outcome.
        Raises Unavailable where the model cannot be loaded or reached at all.
        """
        ...

    def close(self) -> None:
        """Free the model's memory; the next call loads it again."""
        ...
