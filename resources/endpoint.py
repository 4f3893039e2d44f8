"""Asking a server over HTTP: many requests at once, patiently, and within limits.

Belongs here: concurrency, retries, timeouts, keys. Does not belong here: what is asked, what the answers mean, or
what a server's errors mean (server_answers.py).
"""

import asyncio
import contextlib
import math
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from json import dumps
from typing import Any, Protocol, TypeVar

import httpx
from anyio.from_thread import start_blocking_portal

from resources.backend_settings import EndpointSettings
from resources.outcome import Failed, Outcome, Skipped, Unavailable
from resources.server_answers import MayPass, RequestRefused, Server, error_of, json_of

__all__ = ["Endpoint", "NoGoodAnswer", "RequestRefused", "Session"]

CONNECT_SECONDS = 15.0
"""For reaching a server. It answers within the settings' timeout, but it is there within this, or it is not there."""
FIRST_BACKOFF = 0.2
"""Seconds that a retry waits at most: the wait is drawn between none and all of it."""
BACKOFF_GROWTH = 3
"""How much longer it may wait after the next failure, and the next: but only if nobody got a good answer in between,
or if the server says that it is asked too much (and not for how long). A server that answers others need not be
spared, and a request that has bad luck there need not wait long.
"""
LONGEST_BACKOFF = 30.0
LONGEST_RETRY_AFTER = 120.0
"""Seconds. A server that asks for more patience is asked again after this."""
MOST_IN_VAIN = 8
"""After so many requests in a row without a good answer to anything, it is the server and not the rows."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class NoGoodAnswer(RequestRefused):
    """Every try of this request failed by something that might have passed: its row fails, the others go on."""


class Session(Protocol):
    """What a piece of work talks to the server with."""

    async def request(
        self, method: str, path: str, *, json: object = None, timeout: float | None = None
    ) -> httpx.Response:
        """One request, retried while its error may pass; the answer has a status below 300.

        `path` is appended to the settings' base_url; `timeout`, in seconds, is for one try and instead of the
        settings'. Raises RequestRefused, and Unavailable where asking on makes no sense (wrong key, nobody there
        after every retry). A 404 to a GET is RequestRefused with `status` 404; to anything else it is Unavailable,
        as base_url or model must be wrong.
        """
        ...

    async def request_json(
        self,
        method: str,
        path: str,
        read: Callable[[Any], Result],
        *,
        json: object = None,
        timeout: float | None = None,
    ) -> Result:
        """As `request`, for an answer in JSON: what `read` makes of it.

        An answer that is no JSON, or for which `read` raises ValueError, is asked for again like any error that
        may pass. `read` may raise RequestRefused for an answer that would not get better.
        """
        ...


class Endpoint:
    """One server and how it is asked. Nothing is held open between calls; calls from several threads are fine."""

    def __init__(self, settings: EndpointSettings) -> None:
        self.settings = settings
        self._reached = False

    def each(self, items: Sequence[Item], work: Callable[[Session, Item], Awaitable[Result]]) -> list[Outcome[Result]]:
        """Do the work for every item, at most `settings.concurrency` of them at once; results in order.

        While an item waits for its next try, another one takes its place: the server has `concurrency` requests at
        most, and up to twice as many items are begun.

        Work that raises RequestRefused or ValueError gives Failed. Unavailable gives Skipped; then items under way
        come to their end, and those not begun are Skipped with the same reason. Other errors of the work are
        bugs: they end everything and are raised.

        Raises Unavailable before any request if the key is missing, and if nothing came of any item and this
        object never had an answer from the server: then nothing is lost by raising.

        The work runs in an event loop in a thread of its own, so this can be called where a loop is running
        already (a notebook). An interrupt of the caller ends all requests and closes their connections.
        """
        if not items:
            return []
        key = _key(self.settings)
        with start_blocking_portal(name="endpoint") as portal:
            outcomes, stopped = portal.call(self._each, items, work, key)
        if stopped and not self._reached and all(isinstance(outcome, Skipped) for outcome in outcomes):
            raise stopped
        return outcomes

    async def _each(
        self, items: Sequence[Item], work: Callable[[Session, Item], Awaitable[Result]], key: str | None
    ) -> tuple[list[Outcome[Result]], Unavailable | None]:
        settings = self.settings
        async with contextlib.AsyncExitStack() as at_the_end:
            clients = _Clients(settings, key, at_the_end)
            asking = _Asking(settings, Server(settings.base_url, settings.key_variable, key), clients, self._reached)
            try:
                outcomes = await _do_all(asking, items, work)
            finally:
                self._reached = self._reached or asking.reached
        skipped = Skipped(str(asking.stopped))
        return [skipped if outcome is None else outcome for outcome in outcomes], asking.stopped


async def _do_all(
    asking: "_Asking", items: Sequence[Item], work: Callable[[Session, Item], Awaitable[Result]]
) -> list[Outcome[Result] | None]:
    """An outcome for every item that was begun. Only items under way have a task, however many there are."""
    outcomes: list[Outcome[Result] | None] = [None] * len(items)

    async def do(index: int, place: _Place) -> None:
        try:
            outcomes[index] = await work(_PatientSession(asking, place), items[index])
        except (RequestRefused, ValueError) as error:
            outcomes[index] = Failed(str(error))
        except Unavailable as error:
            asking.stopped = asking.stopped or error
            outcomes[index] = Skipped(str(error))
        finally:
            place.leave()

    try:
        async with asyncio.TaskGroup() as tasks:
            for index in range(len(items)):
                place = await _Place.taken(asking)
                if asking.stopped:
                    place.leave()  # an item that lent its place waits for it
                    break
                tasks.create_task(do(index, place))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return outcomes


class _Asking:
    """One call of `Endpoint.each` while it runs: what its sessions share."""

    def __init__(self, settings: EndpointSettings, server: Server, clients: "_Clients", reached: bool) -> None:
        self.settings = settings
        self.server = server
        self.clients = clients
        self.reached = reached  # a good answer came, now or in an earlier call
        self.stopped: Unavailable | None = None  # no item is begun any more
        self.places = asyncio.Semaphore(settings.concurrency)  # for items, those waiting for a next try apart
        self.places_lent = 0
        self._gone = asyncio.Event()  # it is the server that stopped us: nothing is tried again
        self._gone_because: Unavailable | None = None
        self._heard = -math.inf  # when the last answer of any status came
        self._answered_at = -math.inf  # when the last good answer came
        self._in_vain = 0  # requests in a row without a good answer

    async def once(self, method: str, path: str, body: bytes | None, seconds: float) -> httpx.Response:
        """One try. Raises MayPass, RequestRefused or Unavailable for anything but a good status."""
        async with self.clients.one() as client:
            response = await self._response(client, method, path, body, seconds)
        self._heard = time.monotonic()
        if response.status_code < 300:
            return response
        error = error_of(response, self.server, reached=self.reached)
        if isinstance(error, RequestRefused):
            raise self._counted(error)
        raise self._stop(error) if isinstance(error, Unavailable) else error

    async def _response(
        self, client: httpx.AsyncClient, method: str, path: str, body: bytes | None, seconds: float
    ) -> httpx.Response:
        # httpx counts the seconds between two bytes; the outer limit is for all of them. Connecting gets a little
        # less, so that it is known when it was that which took too long.
        timeout = httpx.Timeout(seconds, connect=min(CONNECT_SECONDS, 0.9 * seconds))
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(seconds):
                return await client.request(
                    method, self.settings.base_url + path, content=body, headers=headers, timeout=timeout
                )
        except httpx.ConnectTimeout:
            raise MayPass(f"no connection within {timeout.connect:g} s", connected=False) from None
        except httpx.ConnectError as error:
            raise MayPass(self._described("no connection", error), connected=False) from None
        except (TimeoutError, httpx.TimeoutException):
            raise MayPass(f"no answer within {seconds:g} s") from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:
            raise RequestRefused(self._described(f"{method} {path} cannot be sent", error)) from None
        except httpx.RequestError as error:
            raise MayPass(self._described("the connection broke", error)) from None

    def read(self, response: httpx.Response, read: Callable[[httpx.Response], Result]) -> Result:
        """What is made of a good answer. Raises MayPass for one that cannot be read, and what else `read` raises."""
        try:
            result = read(response)
        except ValueError as error:
            raise MayPass(f"an answer that cannot be used: {self.server.quoted(str(error))}") from None
        except RequestRefused:
            self._answered()
            raise
        self._answered()
        return result

    async def pause(self, seconds: float) -> None:
        """Wait, but no longer than the server is there. Raises Unavailable."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._gone.wait()
        self.raise_if_gone()

    def raise_if_gone(self) -> None:
        """Raises Unavailable if the server stopped us: a request that waited is then not made."""
        if self._gone_because:
            raise self._gone_because

    def in_vain(self, tries: int, last: MayPass, *, connected: bool, since: float) -> Exception:
        """What to raise when every try of a request failed: NoGoodAnswer, or Unavailable if nobody is there."""
        if not connected and self._heard < since:
            return self._stop(
                Unavailable(
                    f"nobody answers at {self.settings.base_url} ({last}, {tries} tries): check that the server runs, "
                    "that base_url is right, and that it can be reached from here"
                )
            )
        return self._counted(NoGoodAnswer(f"no good answer in {tries} tries, the last one: {last}"))

    def answered_since(self, moment: float) -> bool:
        """Whether anybody got a good answer after this moment of time.monotonic()."""
        return self._answered_at > moment

    def _answered(self) -> None:
        self.reached = True
        self._answered_at = time.monotonic()
        self._in_vain = 0

    def _counted(self, error: RequestRefused) -> Exception:
        """The error of a request that came to nothing, or Unavailable if so many did that the rows are not to blame.

        That a request is refused is no bad sign, once others were answered: unless the key may have been withdrawn.
        And a server that says of a thing that it is not there (a 404 is refused for GET only) works well.
        """
        unheard_of = not self.reached and error.status != 404
        if isinstance(error, NoGoodAnswer) or error.status == 403 or unheard_of:
            self._in_vain += 1
        if self._in_vain < MOST_IN_VAIN:
            return error
        return self._stop(
            Unavailable(
                f"{self.settings.base_url}: {self._in_vain} requests in a row came to nothing, the last one: {error}"
            )
        )

    def _stop(self, error: Unavailable) -> Unavailable:
        self.stopped = self.stopped or error
        self._gone_because = self._gone_because or error
        self._gone.set()
        return error

    def _described(self, what: str, error: Exception) -> str:
        return f"{what} ({self.server.quoted(str(error)) or type(error).__name__})"


class _Clients:
    """As many clients as requests may be under way, each with a connection of its own.

    One client with all connections would do, but it looks through all of them several times for every request, and
    then computing, not the server, is what takes the time (httpx 0.28: 5 ms a request with 64 connections, not 1).
    """

    def __init__(self, settings: EndpointSettings, key: str | None, at_the_end: contextlib.AsyncExitStack) -> None:
        self._timeout = settings.timeout
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._at_the_end = at_the_end
        self._certificates = httpx.create_ssl_context()
        self._free = asyncio.Semaphore(settings.concurrency)
        self._idle: list[httpx.AsyncClient] = []

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client for one request, as soon as one is free; the one used last comes first."""
        async with self._free:
            client = self._idle.pop() if self._idle else await self._another()
            try:
                yield client
            finally:
                self._idle.append(client)

    async def _another(self) -> httpx.AsyncClient:
        client = httpx.AsyncClient(headers=self._headers, timeout=self._timeout, verify=self._certificates)
        return await self._at_the_end.enter_async_context(client)


class _Place:
    """An item's place among those under way. It is lent to another item while this one waits for its next try."""

    def __init__(self, asking: _Asking) -> None:
        self._asking = asking
        self._lent = False

    @classmethod
    async def taken(cls, asking: _Asking) -> "_Place":
        """The next place that becomes free."""
        await asking.places.acquire()
        return cls(asking)

    def lend(self) -> bool:
        """Let another item begin. False if enough places are lent already: the items begun must not pile up."""
        asking = self._asking
        if self._lent or asking.places_lent >= asking.settings.concurrency:
            return False
        self._lent = True
        asking.places_lent += 1
        asking.places.release()
        return True

    async def take_back(self) -> None:
        """Wait until there is a place again."""
        await self._asking.places.acquire()
        self._asking.places_lent -= 1
        self._lent = False

    def leave(self) -> None:
        """The item has come to its end."""
        if self._lent:
            self._asking.places_lent -= 1
        else:
            self._asking.places.release()


class _PatientSession:
    """The session of one item."""

    def __init__(self, asking: _Asking, place: _Place) -> None:
        self._asking = asking
        self._place = place
        self._trying = 0  # requests of this item that are not waiting for their next try

    async def request(
        self, method: str, path: str, *, json: object = None, timeout: float | None = None
    ) -> httpx.Response:
        return await self._ask(method, path, json, timeout, lambda response: response)

    async def request_json(
        self,
        method: str,
        path: str,
        read: Callable[[Any], Result],
        *,
        json: object = None,
        timeout: float | None = None,
    ) -> Result:
        return await self._ask(method, path, json, timeout, lambda response: read(json_of(response)))

    async def _ask(
        self, method: str, path: str, json: object, timeout: float | None, read: Callable[[httpx.Response], Result]
    ) -> Result:
        asking, settings = self._asking, self._asking.settings
        body = _encoded(json)
        began = failed = time.monotonic()
        connected, tries, steps = False, 0, -1
        while True:
            tries += 1
            try:
                self._trying += 1
                return asking.read(await asking.once(method, path, body, timeout or settings.timeout), read)
            except MayPass as error:
                trouble = error
            finally:
                self._trying -= 1
            connected = connected or trouble.connected
            if tries > settings.retries:
                raise asking.in_vain(tries, trouble, connected=connected, since=began)
            alone = not asking.answered_since(failed)
            steps, failed = steps + 1 if trouble.too_much or alone else 0, time.monotonic()
            await self._wait(_backoff(steps, trouble.retry_after))

    async def _wait(self, seconds: float) -> None:
        lent = self._trying == 0 and self._place.lend()
        await self._asking.pause(seconds)
        if lent:
            await self._place.take_back()
            self._asking.raise_if_gone()


def _backoff(steps: int, retry_after: float | None) -> float:
    """Seconds to wait for the next try: exponential with full jitter, or what the server asks for and a bit."""
    spread = random.random()  # noqa: S311 (keeps clients from coming back all at once; no secret)
    if retry_after is not None:
        return min(retry_after, LONGEST_RETRY_AFTER) + spread * FIRST_BACKOFF
    return spread * min(LONGEST_BACKOFF, FIRST_BACKOFF * float(BACKOFF_GROWTH) ** steps)


def _encoded(json: object) -> bytes | None:
    """A request's body. Raises RequestRefused for what JSON cannot hold (NaN, half a surrogate pair)."""
    if json is None:
        return None
    try:
        return dumps(json, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise RequestRefused(f"the request cannot be written as JSON: {error}") from None


def _key(settings: EndpointSettings) -> str | None:
    """The key from the environment. Raises Unavailable, without the key, if it is missing or cannot be sent."""
    if settings.key_variable is None:
        return None
    key = os.environ.get(settings.key_variable, "").strip()
    if not key:
        raise Unavailable(
            f"{settings.base_url} is to be asked with the key in the environment variable {settings.key_variable}, "
            "which is not set: set it, or remove key_variable if the server needs no key"
        )
    if not (key.isascii() and key.isprintable()):
        raise Unavailable(f"the environment variable {settings.key_variable} holds characters that no key has")
    return key
