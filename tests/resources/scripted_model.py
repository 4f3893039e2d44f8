"""A language model that says what a test has it say, and remembers what it was asked."""

from collections.abc import Callable, Sequence

from resources.language_model import Conversation, Identity, JsonSchema, Reply, Sampling
from resources.outcome import Outcome

GOOD = "A small red ball glides slowly to the left over a plain white floor while the camera holds still."
UNSAFE = "A naked person lies in a pool of blood on the floor, filmed from above in a slow and steady shot."
REFUSAL = "I'm sorry, but I cannot help with that request."
LOST = "A large blue cube turns slowly on the spot over a plain white floor while the camera holds still."

Says = Callable[[str, int], str | Outcome[Reply]]


class ScriptedModel:
    """`says(query, number of the times it was asked before)` is the reply; one call's asks are one entry of `calls`."""

    def __init__(self, says: Says = lambda query, before: GOOD) -> None:
        self.says = says
        self.calls: list[list[tuple[str, Sampling, int]]] = []
        self.closed = 0
        self._asked: dict[str, int] = {}

    def identity(self) -> Identity:
        return {"backend": "scripted"}

    def generate(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        seeds: Sequence[int],
        *,
        schema: JsonSchema | None = None,
    ) -> list[Outcome[Reply]]:
        queries = [conversation[-1]["content"] for conversation in conversations]
        self.calls.append([(query, sampling, seed) for query, seed in zip(queries, seeds, strict=True)])
        return [self._reply(query) for query in queries]

    def close(self) -> None:
        self.closed += 1

    def _reply(self, query: str) -> Outcome[Reply]:
        before = self._asked.get(query, 0)
        self._asked[query] = before + 1
        said = self.says(query, before)
        return Reply(said, True, 7, 5) if isinstance(said, str) else said
