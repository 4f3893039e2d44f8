"""What clients send and get: OpenAI's chat completions, as far as a prompt optimizer has a use for them.

Belongs here: reading a request, and the bodies of answers, stream chunks and errors. Does not belong here: HTTP
(application.py) or working anything out.

The query is the last message, of role `user`. Messages before it change nothing: the optimizer asks with the template
that it was trained with.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError

from resources.language_model import Sampling
from resources.optimizer_settings import ServingSettings
from resources.prompt_optimizer import Answer, Ask, OptimizedPrompt, RefusedOutput, UnusableQuery, usable

ALIAS = "vpo"
"""A model's name that always means the served checkpoint."""
LARGEST_SEED = (1 << 63) - 1
IGNORED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
"""Parameters that say nothing about the answer."""
MOST_MESSAGES = 1000


class RequestRefused(Exception):
    """A request that is not answered: status, and OpenAI's words for what is wrong."""

    def __init__(
        self, status: int, message: str, *, code: str, parameter: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.parameter = parameter
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """`{"error": {message, type, param, code}}`."""
        if self.status == 401:
            kind = "authentication_error"
        elif self.status == 429:
            kind = "rate_limit_error"
        else:
            kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.parameter, "code": self.code}}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[_Part] | None = None


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")
    include_usage: StrictBool = False


class _Request(BaseModel):
    """The parameters that are known; what is null is as if it were not there."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    model: str = Field(min_length=1)
    messages: list[_Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: StrictInt | None = Field(None, ge=1)
    max_completion_tokens: StrictInt | None = Field(None, ge=1)
    seed: StrictInt | None = Field(None, ge=-LARGEST_SEED, le=LARGEST_SEED)
    n: StrictInt | None = Field(None, ge=1)
    stream: StrictBool | None = None
    stream_options: _StreamOptions | None = None


@dataclass(frozen=True)
class Completion:
    """A request that can be answered: one ask for each choice, and how the answer is to be sent."""

    model: str
    asks: tuple[Ask, ...]
    stream: bool
    with_usage: bool


def read_request(body: bytes, names: Sequence[str], own: Sampling, limits: ServingSettings) -> Completion:
    """A request's body as a completion. `names`: of the served model. `own`: how it is sampled unless the request says
    otherwise. Raises RequestRefused."""
    request = _parsed(body)
    if request.model not in names:
        raise RequestRefused(
            404,
            f"the model {request.model[:100]!r} does not exist here; there is {', '.join(names)}",
            code="model_not_found",
            parameter="model",
        )
    query = _query(request, limits)
    new_tokens = request.max_completion_tokens or request.max_tokens
    choices = request.n or 1
    if new_tokens is not None and new_tokens > limits.most_new_tokens:
        name = "max_completion_tokens" if request.max_completion_tokens else "max_tokens"
        raise _invalid(name, f"{name} = {new_tokens}: must be at most {limits.most_new_tokens}")
    if choices > limits.most_choices:
        raise _invalid("n", f"n = {choices}: must be at most {limits.most_choices}")
    sampling = Sampling(
        own.temperature if request.temperature is None else request.temperature,
        own.top_p if request.top_p is None else request.top_p,
        own.max_new_tokens if new_tokens is None else new_tokens,
    )
    return Completion(
        request.model,
        tuple(Ask(query, sampling, request.seed, choice) for choice in range(choices)),
        bool(request.stream),
        bool(request.stream_options and request.stream_options.include_usage),
    )


def _parsed(body: bytes) -> _Request:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestRefused(400, "the body is no JSON", code="invalid_json") from None
    if not isinstance(values, dict):
        raise RequestRefused(400, "the body is no JSON object", code="invalid_json")
    for name, value in values.items():
        if name not in _Request.model_fields and name not in IGNORED and not _neutral(name, value):
            shown = ascii(name[:100])[1:-1]
            message = f"the parameter {shown!r} is not supported by a prompt optimizer"
            raise RequestRefused(400, message, code="unsupported_parameter", parameter=shown)
    try:
        return _Request.model_validate(values)
    except ValidationError as error:
        # Where content may be text or parts, pydantic tries both, and names the kind after the place: what lies deepest
        # is of the kind that was meant.
        fault = max(error.errors(include_url=False), key=lambda fault: len(fault["loc"]))
        place = [str(part) for part in fault["loc"] if part not in ("str", "list[_Part]")]
        said = str(fault["msg"]).replace("Input should be", "must be")
        raise _invalid(".".join(place), f"{'.'.join(place)}: {said}") from None


def _neutral(name: str, value: object) -> bool:
    """Whether a parameter that is not supported asks for nothing."""
    if name == "response_format":
        return value is None or value == {"type": "text"}
    if name == "tool_choice":
        return value in (None, "none")
    return value is None or value is False or value == 0 or value in ("", [], {})


def _query(request: _Request, limits: ServingSettings) -> str:
    place = f"messages.{len(request.messages) - 1}"
    last = request.messages[-1]
    if last.role != "user":
        raise _invalid(f"{place}.role", f"{place}.role: the last message must be the user's: it is the query")
    content = last.content
    query = "\n".join(part.text for part in content) if isinstance(content, list) else content or ""
    if len(query) > limits.longest_query:
        raise RequestRefused(
            400,
            f"the query has {len(query):,} characters: at most {limits.longest_query:,} are taken",
            code="string_above_max_length",
            parameter=f"{place}.content",
        )
    try:
        usable(query)
    except UnusableQuery as error:
        raise RequestRefused(400, str(error), code="empty_query", parameter=f"{place}.content") from None
    return query


def _invalid(parameter: str, message: str) -> RequestRefused:
    return RequestRefused(400, message, code="invalid_value", parameter=parameter)


def refuse_if_nothing_passed(answers: Sequence[Answer]) -> None:
    """Raise RequestRefused if the model could not take the query (400), or no choice passed the judge (422)."""
    for answer in answers:
        if isinstance(answer, UnusableQuery):
            raise RequestRefused(400, str(answer), code="unusable_query", parameter="messages")
    if all(isinstance(answer, RefusedOutput) for answer in answers):
        raise RequestRefused(422, str(answers[0]), code="content_filter")


def completion_body(identifier: str, created: int, completion: Completion, answers: Sequence[Answer]) -> dict[str, Any]:
    """A `chat.completion`. A choice that the judge refused has finish_reason `content_filter`, no content, and the
    reason as `refusal`."""
    choices = []
    for index, answer in enumerate(answers):
        content, refusal, reason = _outcome(answer)
        message = {"role": "assistant", "content": content, "refusal": refusal}
        choices.append({"index": index, "message": message, "logprobs": None, "finish_reason": reason})
    head = _head(identifier, created, completion, "chat.completion")
    return {**head, "choices": choices, "usage": _usage(answers)}


def completion_events(
    identifier: str, created: int, completion: Completion, answers: Sequence[Answer]
) -> Iterator[str]:
    """The same as server-sent events: for each choice its text and its end, then the usage if it was asked for."""
    head = _head(identifier, created, completion, "chat.completion.chunk")
    more: dict[str, Any] = {"usage": None} if completion.with_usage else {}
    for index, answer in enumerate(answers):
        content, refusal, reason = _outcome(answer)
        delta = {"role": "assistant", "content": content, "refusal": refusal}
        for part, end in ((delta, None), ({}, reason)):
            choice = {"index": index, "delta": part, "logprobs": None, "finish_reason": end}
            yield _event({**head, "choices": [choice], **more})
    if completion.with_usage:
        yield _event({**head, "choices": [], "usage": _usage(answers)})
    yield "data: [DONE]\n\n"


def models_body(names: Sequence[str], created: int) -> dict[str, Any]:
    """The list of models: one checkpoint, under its names."""
    return {"object": "list", "data": [model_body(name, created) for name in names]}


def model_body(name: str, created: int) -> dict[str, Any]:
    """One model."""
    return {"id": name, "object": "model", "created": created, "owned_by": "vpo"}


def _head(identifier: str, created: int, completion: Completion, kind: str) -> dict[str, Any]:
    return {"id": identifier, "object": kind, "created": created, "model": completion.model}


def _outcome(answer: Answer) -> tuple[str | None, str | None, str]:
    """Content, refusal and finish_reason of a choice."""
    if isinstance(answer, OptimizedPrompt):
        return answer.prompt, None, "stop" if answer.whole else "length"
    return None, str(answer), "content_filter"


def _usage(answers: Sequence[Answer]) -> Mapping[str, int]:
    read = written = 0
    for answer in answers:
        if isinstance(answer, OptimizedPrompt):
            read, written = read + answer.prompt_tokens, written + answer.new_tokens
        elif isinstance(answer, RefusedOutput):
            read, written = read + answer.usage[0], written + answer.usage[1]
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _event(body: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"
