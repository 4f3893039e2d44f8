"""What an answer of an HTTP server means: a result, an error that may pass, one for good, or the end of asking.

Belongs here: reading status lines, Retry-After and error bodies. Does not belong here: waiting, asking again, or
what was asked for.
"""

import datetime
import math
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from resources.outcome import Unavailable

QUOTED_LENGTH = 300
MAY_PASS = frozenset({408, 409, 429})
"""Statuses below 500 after which the same request may be answered later."""
TOO_MUCH = frozenset({429, 503})
NO_CREDIT_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
NO_MODEL_CODES = frozenset({"model_not_found"})


class RequestRefused(Exception):
    """The server refused this one request for good (400, 413, 422 ...): its row fails, the others go on."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class MayPass(Exception):
    """A try that failed by what may be over at the next one.

    `retry_after` is in seconds, as the server wishes; `too_much`: it says that it is asked too much, and
    not for how long; `connected`: there was a server.
    """

    def __init__(
        self, reason: str, *, retry_after: float | None = None, too_much: bool = False, connected: bool = True
    ) -> None:
        super().__init__(reason)
        self.retry_after = retry_after
        self.too_much = too_much
        self.connected = connected


@dataclass(frozen=True)
class Server:
    """Whom an error is about. The key is known here only to keep it out of messages."""

    base_url: str
    key_variable: str | None
    key: str | None

    def quoted(self, text: str) -> str:
        """Text of a stranger in one short line that can be printed: no control characters, no key."""
        return quoted(text, self.key)


def quoted(text: str, secret: str | None = None) -> str:
    """Text of a stranger in one short line that can be printed: no control characters, and not the secret."""
    # The secret is looked for before anything is cut, so that no part of it is left over at the end.
    visible = text.replace(secret, "***") if secret else text
    line = " ".join("".join(c if c.isprintable() else " " for c in visible).split())
    return line if len(line) <= QUOTED_LENGTH else f"{line[: QUOTED_LENGTH - 1]}…"


def error_of(response: httpx.Response, server: Server, *, reached: bool) -> Exception:
    """The error that a response with a status of 300 or more stands for: MayPass, RequestRefused or Unavailable.

    `reached`: the server has answered with this key before, so that a 403 is about what was asked.
    """
    status, method = response.status_code, response.request.method
    said = f"HTTP {status}: {server.quoted(response.text) or 'no text'}"
    codes = set(_error_codes(response))
    if status == 401 or (status == 403 and not reached):
        return Unavailable(f"{server.base_url} does not let us in ({said}); {_what_of_the_key(server)}")
    if status == 402 or codes & NO_CREDIT_CODES:
        return Unavailable(f"{server.base_url}: the account has no credit left ({said})")
    if codes & NO_MODEL_CODES or (status in {404, 405} and method != "GET"):
        path = response.request.url.path
        return Unavailable(
            f"{server.base_url} does not have what was asked of {path} ({said}); check base_url and model"
        )
    if status < 400:
        target = server.quoted(response.headers.get("location", "nowhere"))
        return Unavailable(
            f"{server.base_url} sends us on to {target} (HTTP {status}); set base_url to the right address"
        )
    if status in MAY_PASS or status >= 500:
        wished = retry_after(response.headers.get("retry-after"))
        return MayPass(said, retry_after=wished, too_much=status in TOO_MUCH and wished is None)
    return RequestRefused(said, status)


def retry_after(header: str | None) -> float | None:
    """Seconds from now that a Retry-After header asks for, as a number or a date; None where it says nothing."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return None
        if date.tzinfo is None:
            date = date.replace(tzinfo=datetime.UTC)
        seconds = (date - datetime.datetime.now(datetime.UTC)).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def json_of(response: httpx.Response) -> Any:
    """The body as JSON. Raises ValueError, also for what is nested too deeply to be read."""
    try:
        return response.json()
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def _what_of_the_key(server: Server) -> str:
    if server.key_variable is None:
        return "if it needs a key, name the environment variable that holds one in key_variable"
    return f"check the key in the environment variable {server.key_variable}"


def _error_codes(response: httpx.Response) -> Iterator[str]:
    """The machine-readable names of an error, as OpenAI's servers and their likes give them."""
    try:
        body = json_of(response)
    except ValueError:
        return
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        yield from (error[name] for name in ("code", "type") if isinstance(error.get(name), str))
