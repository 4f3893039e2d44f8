"""The process of `vpo look`.

Belongs here: serving until it is interrupted. Does not belong here: routes (application.py).
"""

import socket

import uvicorn

from vpo_assets.viewer.application import Viewer


def serve(viewer: Viewer, taken: socket.socket) -> None:
    """Serve on a taken port until the process is told to end (SIGINT, SIGTERM)."""
    configuration = uvicorn.Config(
        viewer.asgi,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=3,
    )
    uvicorn.Server(configuration).run(sockets=[taken])
