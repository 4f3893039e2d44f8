"""A port of this machine for a server of ours: nobody else can reach it.

Belongs here: taking it. Does not belong here: what is served (serving/, vpo_assets/viewer).
"""

import socket

HOST = "127.0.0.1"
"""From another machine: ssh -L PORT:127.0.0.1:PORT MACHINE"""


class PortInUse(RuntimeError):
    """A port that cannot be had; says how another is chosen."""


def taken_port(port: int, command: str) -> socket.socket:
    """A socket with the port, 0 for any free one; nobody can connect yet. `command` is what takes --port.

    Raises PortInUse.
    """
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((HOST, port))
    except OSError as error:
        taken.close()
        raise PortInUse(f"port {port} cannot be used ({error.strerror}): {command} --port N takes another") from None
    return taken
