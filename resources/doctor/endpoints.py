"""Do the servers answer, and are the keys for them there?

Belongs here: one question to each server, without a retry. Does not belong here: using them (resources/endpoint.py).
Keys are named by their variable and never shown.
"""

from collections.abc import Iterator
from typing import Any

import httpx

from resources.backend_settings import EndpointSettings, VisionRewardSettings
from resources.doctor.findings import Finding, fault, ok, warning
from resources.doctor.machine import Machine
from resources.doctor.needs import endpoints
from resources.server_answers import json_of, quoted
from resources.settings import Profile

SECONDS = 10.0
NAMES_SHOWN = 5


def check_keys(profile: Profile, machine: Machine) -> Iterator[Finding]:
    """A line for every variable that should hold a key."""
    variables: dict[str, str] = {}
    for key, settings in endpoints(profile):
        if settings.key_variable:
            variables.setdefault(settings.key_variable, key)
    for variable, key in variables.items():
        if machine.environment.get(variable, "").strip():
            yield ok(f"{key}.key_variable", f"{variable} is set")
        else:
            yield fault(f"{key}.key_variable", f"{variable} is not set", f"export {variable}=...")


def check_endpoints(profile: Profile, machine: Machine) -> Iterator[Finding]:
    """A line for every server and model, each asked once."""
    asked: set[tuple[str, str | None, str]] = set()
    for key, settings in endpoints(profile):
        model = str(getattr(settings, "model", ""))
        same = (settings.base_url, settings.key_variable, model)
        if same not in asked:
            asked.add(same)
            yield _ask(key, settings, model, machine)


def _ask(key: str, settings: EndpointSettings, model: str, machine: Machine) -> Finding:
    secret = machine.environment.get(settings.key_variable or "", "").strip() or None
    service = isinstance(settings, VisionRewardSettings)
    address = f"{settings.base_url}/{'health' if service else 'models'}"
    try:
        response = httpx.get(
            address,
            headers={"Authorization": f"Bearer {secret}"} if secret else {},
            timeout=min(SECONDS, settings.timeout),
        )
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        said = quoted(f"{type(error).__name__}: {error}", secret)
        remedy = (
            "start it: python services/visionreward/server.py, see its README.md"
            if service
            else "start the server, or correct base_url"
        )
        return fault(key, f"nobody answers at {address} ({said})", remedy)
    refused = _refusal(key, settings, address, response, secret)
    if refused is not None:
        return refused
    try:
        body = json_of(response)
    except ValueError:
        return fault(key, f"{address} answers with something that is no JSON", "correct base_url")
    return _same_model(key, model, address, body, secret, service)


def _refusal(
    key: str, settings: EndpointSettings, address: str, response: httpx.Response, secret: str | None
) -> Finding | None:
    """What is said of an answer that is no good one."""
    status = response.status_code
    if status < 300:
        return None
    said = f"HTTP {status}: {quoted(response.text, secret) or 'no text'}"
    if status in (401, 403):
        wanted = settings.key_variable or "none: name the variable that holds one in key_variable"
        return fault(key, f"{address} does not let us in ({said})", f"check the key ({wanted})")
    if status < 400:
        return fault(key, f"{address} sends us on ({said})", "set base_url to the right address")
    if status in (404, 405):
        return warning(key, f"{address} answers, but does not list its models ({said})", "check base_url and model")
    if status == 429:
        return warning(key, f"{address} answers that we ask too much ({said})", "wait, or check the account")
    return fault(key, f"{address} is not well ({said})", "look at the server's own log")


def _same_model(key: str, model: str, address: str, body: Any, secret: str | None, service: bool) -> Finding:
    if service:
        names = [str(body["model"])] if isinstance(body, dict) and "model" in body else []
    else:
        listed = body.get("data") if isinstance(body, dict) else None
        names = [str(one["id"]) for one in listed or [] if isinstance(one, dict) and "id" in one]
    if not names:
        return warning(key, f"{address} answers, but names no model", f"make sure that it has {model}")
    if model not in names:
        shown = ", ".join(quoted(name, secret) for name in names[:NAMES_SHOWN])
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        return fault(key, f"{address} has no model {model}, but {shown}{more}", "correct model, or serve that one")
    return ok(key, f"{address} answers and has {model}")
