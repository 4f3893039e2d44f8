"""Getting to a Ray cluster: a running one, or one of this machine's own for the length of the run.

Belongs here: connecting, and saying in one line why it does not work. Does not belong here: what is done there
(ray_compute.py).
"""

import os
import platform
import re
import secrets
import socket
import sys
from typing import Any

from resources.compute_settings import RayWorkersSettings
from resources.outcome import Unavailable

HOW_TO_INSTALL = "pip install 'ray[default]>=2.60,<2.61', or the project with its extra `ray`"
CONNECT_SECONDS = 5.0
TOKEN_VARIABLES = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}


def imported_ray(asked_by: str = RayWorkersSettings.asked_by) -> Any:
    """The module, for a setting of the profile. Raises Unavailable where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise Unavailable(f"{asked_by}, which is not installed ({error}): {HOW_TO_INSTALL}") from None
    return ray


def connect(settings: RayWorkersSettings, *, show_workers: bool = False) -> Any:
    """The module, connected; a connection that this process has already is used. What workers print is shown if asked.
    Raises Unavailable."""
    # Ray reports its use to its makers unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if settings.address is None and "ray" not in sys.modules and not TOKEN_VARIABLES & os.environ.keys():
        # Ray listens on every interface, behind a token that it reads once and would keep in a file open to all.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    ray = imported_ray(settings.asked_by)
    if ray.is_initialized():
        return ray
    options: dict[str, Any] = {"log_to_driver": show_workers, "logging_level": "error", "namespace": "vpo"}
    if settings.node_address is not None:
        options["_node_ip_address"] = settings.node_address
    if settings.address is None:
        options |= {"address": "local", "include_dashboard": False, "num_cpus": settings.local_cpus}
    else:
        if settings.address != "auto":
            _raise_if_nobody_listens(settings.key, settings.address)
        options["address"] = settings.address
    try:
        ray.init(**options)
    except Exception as error:
        raise Unavailable(in_words(settings, ray.__version__, error)) from error
    return ray


def _raise_if_nobody_listens(key: str, address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise Unavailable(
            f"no Ray cluster answers at {key}.address = {address} ({error}): start one with `ray start --head "
            f"--port {port}` there, correct the address, or set it to null for a cluster on this machine"
        ) from None


def in_words(settings: RayWorkersSettings, version: str, error: Exception) -> str:
    """One line about why `ray.init` did not work."""
    text = str(error)
    where = f"the Ray cluster at {settings.key}.address = {settings.address}"
    if "ersion mismatch" in text:
        ours = f"Ray {version} and Python {platform.python_version()}"
        theirs = re.search(r"cluster was started with:\s*Ray: (\S+)\s*Python: (\S+)", text)
        named = f"Ray {theirs[1]} and Python {theirs[2]}" if theirs else "another version of Ray or Python"
        return f"{where} runs {named}, this process {ours}: install the same on both"
    if "uthenticat" in type(error).__name__ + text:
        return (
            f"{where} does not accept this process's token: RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH must name the same "
            f"token here and where `ray start` ran ({_first_line(text)})"
        )
    if settings.address is None:
        return f"no Ray cluster could be started on this machine: {_first_line(text)}"
    if settings.address == "auto":
        return f"this machine is no node of a running Ray cluster: {_first_line(text)}"
    return (
        f"{where} cannot be joined: {_first_line(text)}. Is this machine a node of it (`ray start --address "
        f"{settings.address}`, {settings.key}.node_address), and does RAY_AUTH_TOKEN_PATH name its token here?"
    )


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")[:300]
