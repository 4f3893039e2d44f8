"""The backend that asks a language model behind an OpenAI-compatible endpoint.

Belongs here: the request's body, what is read from the answer, and what it cost. Does not belong here: how a server
is asked (endpoint.py), counting costs (budget.py), or anything about what is asked.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from resources.backend_settings import EndpointModelSettings
from resources.budget import Budget, Spent
from resources.endpoint import Endpoint, RequestRefused, Session
from resources.language_model import Conversation, Identity, JsonSchema, Reply, Sampling
from resources.outcome import Outcome
from resources.server_answers import quoted

PATH = "/chat/completions"
LARGEST_SEED = 2**31
"""Seeds are folded below this: some servers take no larger ones."""
BYTES_A_TOKEN = 2
"""Fewer than a token of any common language has in UTF-8, so that the tokens of a prompt are not underrated."""
TOKENS_A_MESSAGE = 8


class EndpointLanguageModel:
    """A language model that a server runs. Whether the same seed gives the same reply is up to that server.

    `extra_body` of the settings is laid over the request's body; a null removes a field. With
    `max_completion_tokens` in it that field takes the place of `max_tokens`: with the number that stands there,
    or with the sampling's for null.
    """

    def __init__(self, settings: EndpointModelSettings) -> None:
        self.settings = settings
        self._endpoint = Endpoint(settings)
        self._budget = Budget(settings.budget, f"the model {settings.model}")

    @property
    def spent(self) -> Spent:
        """What was spent since this object was made: answered requests, tokens, money."""
        return self._budget.spent

    def identity(self) -> Identity:
        settings = self.settings
        identity: Identity = {
            "backend": settings.backend,
            "base_url": settings.base_url,
            "model": settings.model,
            "revision": settings.revision,
            "structured_output": settings.structured_output,
        }
        if settings.extra_body:
            identity["extra_body"] = json.dumps(settings.extra_body, sort_keys=True)
        return identity

    def generate(
        self,
        conversations: Sequence[Conversation],
        sampling: Sampling,
        seeds: Sequence[int],
        *,
        schema: JsonSchema | None = None,
    ) -> list[Outcome[Reply]]:
        """As LanguageModel says. Rows that the budget does not suffice for are Skipped."""
        if len(seeds) != len(conversations):
            raise ValueError(f"{len(conversations)} conversations need as many seeds, not {len(seeds)}")

        async def ask(session: Session, row: int) -> Reply:
            body = self._body(conversations[row], sampling, seeds[row], schema)
            most = self._most(body, sampling)
            async with self._budget.reserved(most):
                return await session.request_json("POST", PATH, lambda answer: self._reply(answer, most), json=body)

        return self._endpoint.each(range(len(conversations)), ask)

    def close(self) -> None:
        """Nothing to free: nothing is held between calls."""

    def _body(
        self, conversation: Conversation, sampling: Sampling, seed: int, schema: JsonSchema | None
    ) -> dict[str, Any]:
        settings = self.settings
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": [dict(message) for message in conversation],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
        }
        if settings.send_seed:
            body["seed"] = seed % LARGEST_SEED
        if schema is not None and settings.structured_output != "none":
            body["response_format"] = _response_format(settings.structured_output, schema)
        extra = dict(settings.extra_body)
        if "max_completion_tokens" in extra:
            del body["max_tokens"]
            if extra["max_completion_tokens"] is None:
                extra["max_completion_tokens"] = sampling.max_new_tokens
        return {name: value for name, value in {**body, **extra}.items() if value is not None}

    def _most(self, body: Mapping[str, Any], sampling: Sampling) -> Spent:
        """What one request may cost at most, guessed with care from its size."""
        text = json.dumps([body["messages"], body.get("response_format")], ensure_ascii=False)
        prompt = len(text.encode(errors="replace")) // BYTES_A_TOKEN + TOKENS_A_MESSAGE * len(body["messages"])
        new = body.get("max_completion_tokens", body.get("max_tokens"))
        return self._budget.cost(prompt, new if isinstance(new, int) else sampling.max_new_tokens)

    def _reply(self, answer: Any, most: Spent) -> Reply:
        """The reply in an answer, whose cost is counted whatever it is worth: `most` if the server does not say.

        Raises ValueError for an answer that is malformed, RequestRefused for one that was withheld.
        """
        prompt_tokens, new_tokens = _usage(answer)
        counted = prompt_tokens + new_tokens > 0
        if counted:
            self._budget.count(self._budget.cost(prompt_tokens, new_tokens))
        choice = _first_choice(answer)
        if not counted:
            self._budget.count(most)
        message, reason = choice["message"], choice.get("finish_reason")
        if reason == "content_filter":
            raise RequestRefused("the server's content filter withheld the reply (finish_reason content_filter)")
        if refusal := message.get("refusal"):
            raise RequestRefused(f"the model refused: {quoted(str(refusal))}")
        text = message.get("content")
        if text is None and reason == "length":
            text = ""  # all its tokens went into thoughts that the server does not show
        if not isinstance(text, str):
            raise ValueError(f"choices[0].message.content is no text (finish_reason {quoted(str(reason))})")
        _check_storable(text)
        return Reply(text.strip(), reason == "stop", prompt_tokens, new_tokens)


def _response_format(kind: str, schema: JsonSchema) -> dict[str, Any]:
    if kind == "json_object":
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": dict(schema)}}


def _usage(answer: Any) -> tuple[int, int]:
    """Prompt and new tokens of an answer; zeros where the server does not count, or counts nonsense."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else []
    prompt_tokens, new_tokens = (max(count, 0) if isinstance(count, int) else 0 for count in counts or (0, 0))
    return prompt_tokens, new_tokens


def _first_choice(answer: Any) -> dict[str, Any]:
    """choices[0], with a message in it. Raises ValueError."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices:
        raise ValueError(f"no choices in {quoted(json.dumps(answer))}")
    choice = choices[0]
    if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
        raise ValueError("choices[0] has no message")
    return choice


def _check_storable(text: str) -> None:
    """JSON can hold half a surrogate pair; no file and no table can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("choices[0].message.content is no valid Unicode") from None
