"""The HTTP side of `vpo serve`: routes, the key, limits, and errors in OpenAI's shape.

Belongs here: what a request must be to be read at all, and status codes. Does not belong here: the protocol
(protocol.py), batching (batching.py), or the process and its port (server.py).
"""

import asyncio
import hmac
import secrets
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from resources.language_model import Sampling
from resources.optimizer_settings import ServingSettings
from resources.outcome import Unavailable
from resources.prompt_optimizer import Answer, Ask, PromptOptimizer
from resources.serving.batching import Batcher, QueueFull, ShuttingDown
from resources.serving.protocol import (
    ALIAS,
    RequestRefused,
    completion_body,
    completion_events,
    model_body,
    models_body,
    read_request,
    refuse_if_nothing_passed,
)

HOSTS = frozenset({"127.0.0.1", "localhost"})
LARGEST_BODY = 1_000_000  # bytes
SECONDS_TO_COME_BACK = 1
CLIENT_IS_GONE = 499  # nobody reads it

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


class Application:
    """The routes over one optimizer. `key`: what clients must send as `Authorization: Bearer KEY`; None: nothing."""

    def __init__(self, optimizer: PromptOptimizer, settings: ServingSettings, key: str | None) -> None:
        self._settings = settings
        self._key = key
        self._name = optimizer.settings.name
        self._own: Sampling = optimizer.settings.sampling.sampling()
        self._created = int(time.time())
        self.batcher = Batcher(optimizer, settings)
        self.asgi = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._guarded(self._models)),
                Route("/v1/models/{model:path}", self._guarded(self._model)),
                Route("/v1/chat/completions", self._guarded(self._completions), methods=["POST"]),
            ],
            lifespan=self._lifespan,
            exception_handlers={HTTPException: _no_route},
        )

    @property
    def names(self) -> Sequence[str]:
        """What the served model is called."""
        return tuple(dict.fromkeys((self._name, ALIAS)))

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """The model's thread works as long as the server runs, and a little longer: until what waits is answered."""
        del app
        working = asyncio.create_task(self.batcher.run())
        try:
            yield
        finally:
            self.batcher.end()
            await working
            await self.batcher.close()

    def _guarded(self, handler: Handler) -> Handler:
        """A handler behind the host and key checks, whose errors come out as OpenAI's."""

        async def guarded(request: Request) -> Response:
            try:
                self._check_host(request)
                self._check_key(request)
                return await handler(request)
            except RequestRefused as refused:
                return _refusal(refused)
            except QueueFull as error:
                return _refusal(_try_again(429, str(error), "queue_full"))
            except ShuttingDown as error:
                return _refusal(_try_again(503, str(error), "shutting_down"))
            except Unavailable as error:
                return _refusal(RequestRefused(503, str(error), code="model_unavailable"))
            except ClientDisconnect:
                return Response(status_code=CLIENT_IS_GONE)
            except Exception as error:
                traceback.print_exception(error, file=sys.stderr)
                message = "the server failed on this request; its own output says why"
                return _refusal(RequestRefused(500, message, code="internal_error"))

        return guarded

    def _check_host(self, request: Request) -> None:
        """Refuse other names than this machine's own: they come from pages whose name was made to point here."""
        host = request.headers.get("host", "").rsplit(":", 1)[0]
        if host not in HOSTS:
            raise RequestRefused(403, "this server answers to 127.0.0.1 and localhost only", code="wrong_host")

    def _check_key(self, request: Request) -> None:
        if self._key is None:
            return
        scheme, _, sent = request.headers.get("authorization", "").partition(" ")
        # In constant time: how long a wrong key takes says nothing about the right one.
        same = hmac.compare_digest(sent.strip().encode("latin-1"), self._key.encode())
        if scheme.lower() != "bearer" or not same:
            message = "the key is missing or wrong: send the server's VPO_SERVE_KEY as the API key"
            raise RequestRefused(401, message, code="invalid_api_key")

    async def _health(self, request: Request) -> Response:
        try:
            self._check_host(request)
        except RequestRefused as refused:
            return _refusal(refused)
        return JSONResponse({"status": "ok", "model": self._name, "waiting": self.batcher.waiting})

    async def _models(self, request: Request) -> Response:
        del request
        return JSONResponse(models_body(self.names, self._created))

    async def _model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if name not in self.names:
            message = f"the model {name[:100]!r} does not exist here; there is {', '.join(self.names)}"
            raise RequestRefused(404, message, code="model_not_found", parameter="model")
        return JSONResponse(model_body(name, self._created))

    async def _completions(self, request: Request) -> Response:
        # A page in a browser can send no request of this type to another address than its own unasked.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RequestRefused(415, "the body must be application/json", code="unsupported_media_type")
        completion = read_request(await _body(request), self.names, self._own, self._settings)
        answers = await self._answers_or_gone(request, completion.asks)
        refuse_if_nothing_passed(answers)
        identifier, created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        if completion.stream:
            events = completion_events(identifier, created, completion, answers)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        return JSONResponse(completion_body(identifier, created, completion, answers))

    async def _answers_or_gone(self, request: Request, asks: Sequence[Ask]) -> list[Answer]:
        """The answers. Raises ClientDisconnect if the client goes away before, and drops the request then."""
        answers = asyncio.create_task(self.batcher.answers(asks))
        gone = asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait({answers, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answers.done():
                raise ClientDisconnect
            return answers.result()
        finally:
            for task in (answers, gone):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task


async def _disconnected(request: Request) -> None:
    """Comes back when the client is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> bytes:
    """The body. Raises RequestRefused for one that is too large, without reading it to its end."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > LARGEST_BODY:
            message = f"the body has more than {LARGEST_BODY:,} bytes"
            raise RequestRefused(413, message, code="request_too_large")
    return bytes(content)


def _refusal(refused: RequestRefused) -> Response:
    headers = {} if refused.retry_after is None else {"Retry-After": str(refused.retry_after)}
    return JSONResponse(refused.body, status_code=refused.status, headers=headers)


def _try_again(status: int, message: str, code: str) -> RequestRefused:
    return RequestRefused(status, message, code=code, retry_after=SECONDS_TO_COME_BACK)


async def _no_route(request: Request, error: Exception) -> Response:
    """What Starlette says of unknown paths and methods."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    known = "there are POST /v1/chat/completions, GET /v1/models and GET /health"
    code = "method_not_allowed" if status == 405 else "unknown_url"
    body: dict[str, Any] = RequestRefused(status, f"{request.method} {request.url.path[:100]}: {known}", code=code).body
    return JSONResponse(body, status_code=status)
