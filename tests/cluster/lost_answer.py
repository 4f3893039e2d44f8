"""A way to Postgres on which the answer to a COMMIT is lost: the server does it, and the client never hears of it."""

import socket
import threading
from contextlib import suppress

_PIECE = 65536


class LossyWay:
    """Listens on a port of its own and passes everything on to the server, until it is told to lose an answer."""

    def __init__(self, server_port: int) -> None:
        self._server = ("127.0.0.1", server_port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.loses_the_next = False
        self.lost = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                threading.Thread(target=self._ask, args=(client, server), daemon=True).start()
                threading.Thread(target=_pass_on, args=(server, client), daemon=True).start()

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while piece := client.recv(_PIECE):
                if self.loses_the_next and b"COMMIT" in piece:
                    self.loses_the_next = False
                    _cut(client)  # before the server is asked: its answer finds nobody
                    server.sendall(piece)
                    server.sendall(b"X\x00\x00\x00\x04")  # goodbye: the server ends the session when it has done it
                    while server.recv(_PIECE):
                        pass
                    self.lost += 1
                    return
                server.sendall(piece)
        _cut(client)
        _cut(server)


def _pass_on(source: socket.socket, to: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(_PIECE):
            to.sendall(piece)
    _cut(to)


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
