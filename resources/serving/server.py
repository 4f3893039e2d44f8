"""The process of `vpo serve`: its key, and an end that leaves nobody without an answer.

Belongs here: running the application on a port of this machine. Does not belong here: routes
(application.py).
"""

import asyncio
import os
import socket
from collections.abc import Callable

import uvicorn

from resources.optimizer_settings import ServingSettings
from resources.prompt_optimizer import PromptOptimizer
from resources.serving.application import Application

KEY_VARIABLE = "VPO_SERVE_KEY"


class UnusableKey(ValueError):
    """A key that protects nothing."""


def serving_key() -> str | None:
    """The key that clients must send, from the environment. Raises UnusableKey for an empty one."""
    key = os.environ.get(KEY_VARIABLE)
    if key is not None and not key.strip():
        raise UnusableKey(f"{KEY_VARIABLE} is empty: set a key, or unset it to serve without one")
    return None if key is None else key.strip()


def serve(
    optimizer: PromptOptimizer,
    settings: ServingSettings,
    taken: socket.socket,
    key: str | None,
    ready: Callable[[int], None],
) -> None:
    """Serve on a taken port until the process is told to end (SIGINT, SIGTERM); `ready` is told the port.

    The model is loaded before the first client can connect. Requests under way at the end are answered.
    """
    application = Application(optimizer, settings, key)
    configuration = uvicorn.Config(
        application.asgi,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=settings.shutdown_seconds,
        backlog=1024,
        ws="none",
    )
    asyncio.run(_run(_Server(configuration, ready), application, taken))


class _Server(uvicorn.Server):
    """Tells its port when it listens."""

    def __init__(self, configuration: uvicorn.Config, ready: Callable[[int], None]) -> None:
        super().__init__(configuration)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if sockets and not self.should_exit:
            self._ready(sockets[0].getsockname()[1])


async def _run(server: uvicorn.Server, application: Application, taken: socket.socket) -> None:
    await application.batcher.load()
    await server.serve(sockets=[taken])
