"""The process of `vpo look`: its port, and serving until it is interrupted.

Belongs here: taking a port of this machine. Does not belong here: routes (application.py).
"""

import socket

import uvicorn

from vpo_assets.viewer.application import HOSTS, Viewer


class PortInUse(RuntimeError):
    """A port that cannot be had; says how another is chosen."""


def taken_port(port: int) -> socket.socket:
    """A socket with the port; nobody can connect yet. Raises PortInUse."""
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((HOSTS[0], port))
    except OSError as error:
        taken.close()
        raise PortInUse(f"port {port} cannot be used ({error.strerror}): vpo look --port N takes another") from None
    return taken


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
