"""The viewer as a web application.

Belongs here: routes, status codes, and keeping other sites out. Does not belong here: what a page shows, the process
and its port (server.py).

Only a browser on this machine is answered, under the names below: so a foreign site can neither read pages through a
name that it points here (Host), nor send votes (Origin, and a body that is JSON).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, TypeAlias

from anyio.to_thread import run_sync
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from storage.lake import LakeError
from vpo_assets.platform import Platform
from vpo_assets.report.plain_text import one_line
from vpo_assets.viewer.comparisons import NothingToCompare, chosen_methods
from vpo_assets.viewer.filters import PairFilter, QueryFilter, UnusableFilter, read_filter
from vpo_assets.viewer.gallery import query_page
from vpo_assets.viewer.overview import overview
from vpo_assets.viewer.pages import CONTENT_POLICY, STATIC, Pages
from vpo_assets.viewer.pairs import pair_page
from vpo_assets.viewer.results import Results, UnknownClip
from vpo_assets.viewer.voting import (
    AlreadyVoted,
    Polling,
    Progress,
    UnknownComparison,
    UnusableName,
    Vote,
)

HOSTS = ("127.0.0.1", "localhost")
LARGEST_VOTE = 10_000  # bytes
CLIP_SECONDS = 3600
HEADERS = {
    "content-security-policy": f"{CONTENT_POLICY}; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
REFUSALS: Mapping[type[Exception], int] = {
    UnusableFilter: 400,
    UnusableName: 400,
    UnknownClip: 404,
    UnknownComparison: 404,
    NothingToCompare: 404,
    AlreadyVoted: 409,
    LakeError: 503,
}

Answer: TypeAlias = dict[str, Any]


class Viewer:
    """The routes over one target. `methods`: those that people compare blindly, with commas; all for None.

    Raises UnknownMethod."""

    def __init__(self, platform: Platform, target: str, methods: str | None = None) -> None:
        self._results = Results(platform, target)
        self._polling = Polling(self._results, chosen_methods(self._results, methods))
        self._pages = Pages(target, live=True)
        self.asgi = Starlette(
            routes=[
                Route("/", self._overview),
                Route("/pairs", self._pairs),
                Route("/gallery", self._gallery),
                Route("/clips/{video_id}", self._clip),
                Route("/vote", self._vote),
                Route("/vote/next", self._next),
                Route("/vote/clips/{comparison_id}/{side}", self._side),
                Route("/votes", self._store, methods=["POST"]),
                Mount("/static", StaticFiles(directory=STATIC)),
            ],
            middleware=[Middleware(_OwnHeaders), Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS))],
            exception_handlers={HTTPException: self._refuse, **dict.fromkeys(REFUSALS, self._refuse)},
        )

    # ---- looking ---------------------------------------------------------------------------------------------

    def _overview(self, _: Request) -> Response:
        return HTMLResponse(self._pages.overview(overview(self._results)))

    def _pairs(self, request: Request) -> Response:
        wanted = read_filter(PairFilter, request.query_params)
        return HTMLResponse(self._pages.pairs(pair_page(self._results, wanted), wanted, self._results.dimensions))

    def _gallery(self, request: Request) -> Response:
        wanted = read_filter(QueryFilter, request.query_params)
        return HTMLResponse(self._pages.gallery(query_page(self._results, wanted), wanted, self._results.dimensions))

    def _clip(self, request: Request) -> Response:
        file, mime_type = self._results.clip_file(request.path_params["video_id"])
        return FileResponse(file, media_type=mime_type, headers={"cache-control": f"max-age={CLIP_SECONDS}"})

    # ---- voting ----------------------------------------------------------------------------------------------

    def _vote(self, _: Request) -> Response:
        try:
            self._polling.progress("anyone")
        except NothingToCompare as nothing:
            return HTMLResponse(self._pages.vote(str(nothing)))
        return HTMLResponse(self._pages.vote())

    def _next(self, request: Request) -> Response:
        return JSONResponse(_asked(self._polling.progress(request.query_params.get("annotator", ""))))

    def _side(self, request: Request) -> Response:
        side: Literal["left", "right"] = "left" if request.path_params["side"] == "left" else "right"
        annotator = request.query_params.get("annotator", "")
        clip = self._polling.side(annotator, request.path_params["comparison_id"], side)
        file, mime_type = self._results.file_of(clip.uri)
        return FileResponse(file, media_type=mime_type)

    async def _store(self, request: Request) -> Response:
        _refuse_strangers(request)
        vote = _read_vote(await _body(request))
        stored = await run_sync(partial(self._polling.vote, vote))
        progress = await run_sync(partial(self._polling.progress, vote.annotator))
        told = {"new": stored.new, "left": stored.left, "right": stored.right}
        return JSONResponse({**told, "next": _asked(progress)})

    # ---- refusing --------------------------------------------------------------------------------------------

    def _refuse(self, request: Request, error: Exception) -> Response:
        """Errors that are meant for people, as a page or as JSON."""
        if isinstance(error, HTTPException):
            status, said = error.status_code, error.detail
        else:
            status = next(code for kind, code in REFUSALS.items() if isinstance(error, kind))
            said = one_line(error, 500)
        if request.url.path.startswith(("/vote/", "/votes")):
            return JSONResponse({"error": said}, status)
        return HTMLResponse(self._pages.problem(said), status)


def _asked(progress: Progress) -> Answer:
    """A comparison as the page may know it: nothing of methods, prompts and videos."""
    one = progress.comparison
    return {
        "done": progress.done,
        "total": progress.total,
        "comparison": None
        if one is None
        else {
            "id": one.comparison_id,
            "query": one.query,
            "moving": {
                side: clip.uri.endswith(".mp4") for side, clip in zip(("left", "right"), progress.sides, strict=True)
            },
        },
    }


def _refuse_strangers(request: Request) -> None:
    """Only a page of this very server may send a vote."""
    if request.headers.get("origin") != f"http://{request.headers.get('host', '')}":
        raise HTTPException(403, "votes are taken from the viewer's own page only")
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "a vote is sent as application/json")


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_VOTE:
            raise HTTPException(413, f"a vote has at most {LARGEST_VOTE:,} bytes")
    return body


def _read_vote(body: bytes) -> Vote:
    try:
        return Vote.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "the vote"
        raise HTTPException(400, f"{one_line(name, 40)}: {one_line(first['msg'], 200)}") from None


class _OwnHeaders:
    """What every answer tells the browser: take nothing from elsewhere, and give nothing to others."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await self._app(scope, receive, with_headers)
