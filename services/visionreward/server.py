"""Serves one reward model on this machine: python services/visionreward/server.py --model MODEL --port PORT

Belongs here: the command line, choosing and loading the model, and HTTP. Does not belong here: what requests hold
(protocol.py), what becomes of them (answering.py), or any model. See README.md.
"""

import argparse
import importlib.util
import json
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a script it is given its own folder to import from; its package is two above
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from services.visionreward.answering import Answering
from services.visionreward.interface import CannotStart, ChecklistModel, ScalarModel, Start
from services.visionreward.protocol import BadRequest, Limits, asked_clips, health

HOST = "127.0.0.1"
"""The server has no keys, so nobody else may reach it. From another machine: ssh -L PORT:127.0.0.1:PORT MACHINE"""
SECONDS_OF_SILENCE = 120.0  # within a request
MOST_UNDER_WAY = 8  # requests that are held in memory at once
SECONDS_TO_COME_BACK = 2
MOST_DISCARDED = 1 << 30  # bytes of a refused request that are read to its end


class Service(ThreadingHTTPServer):
    """The HTTP server. Its port is taken when it is made, and it listens from `begin` on."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, limits: Limits) -> None:
        super().__init__((HOST, port), Handler, bind_and_activate=False)
        self.limits = limits
        self.places = threading.BoundedSemaphore(MOST_UNDER_WAY)
        self.answering: Answering
        try:
            self.server_bind()
        except OSError as error:
            self.server_close()
            raise CannotStart(f"port {port} cannot be had ({error.strerror}): choose another one with --port") from None

    @property
    def port(self) -> int:
        """The port, also where any free one was asked for with 0."""
        return int(self.server_address[1])

    def begin(self, answering: Answering) -> None:
        """Listen."""
        self.answering = answering
        self.server_activate()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news; anything else is a bug, and printed."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class Refused(Exception):
    """A request that is not answered, with its status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Service
    protocol_version = "HTTP/1.1"
    server_version = "visionreward"
    sys_version = ""
    timeout = SECONDS_OF_SILENCE
    _unread = 0  # bytes of the request's body

    def do_GET(self) -> None:
        """GET /health"""
        self._answer_with(self._health)

    def do_POST(self) -> None:
        """POST /answers"""
        self._answer_with(self._answers)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: requests are no news."""

    def _health(self) -> dict[str, Any]:
        if self.path != "/health":
            raise Refused(404, "there are GET /health and POST /answers")
        return health(self.server.answering.model, self.server.limits)

    def _answers(self) -> dict[str, Any]:
        if self.path != "/answers":
            raise Refused(404, "there are GET /health and POST /answers")
        if not self.server.places.acquire(blocking=False):
            raise Refused(503, f"{MOST_UNDER_WAY} requests are under way already")
        try:
            model = self.server.answering.model
            clips = asked_clips(self._body(), with_questions=isinstance(model, ChecklistModel))
            results = self.server.answering.results(clips)
        except BadRequest as error:
            raise Refused(400, str(error)) from error
        finally:
            self.server.places.release()
        return {"model": model.start.model, "revision": model.start.revision, "results": results}

    def _body(self) -> Any:
        # A page in a browser can send no request of this type to another address than its own unasked.
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "the body must be application/json")
        length, most = self._unread, self.server.limits.most_bytes
        if not length:
            raise Refused(411, "a request needs its Content-Length")
        if length > most:
            raise Refused(413, f"a request may have {most} bytes, this one has {length}: send fewer clips at once")
        content = self.rfile.read(length)
        self._unread = 0
        if len(content) < length:
            raise Refused(400, "the body ended early")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise Refused(400, "the body is no JSON") from None

    def _answer_with(self, make: Callable[[], dict[str, Any]]) -> None:
        length = self.headers.get("Content-Length", "")
        self._unread = int(length) if length.isascii() and length.isdigit() else 0
        status = 200
        try:
            # Other names than these come from pages whose name was made to point here.
            if self.headers.get("Host", "").rsplit(":", 1)[0] not in (HOST, "localhost"):
                raise Refused(403, "this server answers as 127.0.0.1 and localhost only")
            body = make()
        except Refused as error:
            status, body = error.status, {"error": str(error)}
            self._discard_body()
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:
            traceback.print_exc()
            status, body = 500, {"error": f"the service failed ({type(error).__name__})"}
        self._write(status, json.dumps(body).encode())

    def _discard_body(self) -> None:
        """Read what is left of a refused request: who is still sending does not see the answer."""
        self.close_connection = True
        left = min(self._unread, MOST_DISCARDED)
        while left > 0:
            part = self.rfile.read(min(left, 1 << 20))
            left = left - len(part) if part else 0

    def _write(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status == 503:
            self.send_header("Retry-After", str(SECONDS_TO_COME_BACK))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)


def model_class(adapter: str) -> type[ChecklistModel] | type[ScalarModel]:
    """The class that `FILE.py:CLASS` names. Runs that file. Raises CannotStart."""
    file, _, name = adapter.rpartition(":")
    path = Path(file)
    if not path.is_file() or path.suffix != ".py":
        raise CannotStart(f"--adapter {adapter}: give a Python file and a class in it, as in my_model.py:MyModel")
    spec = importlib.util.spec_from_file_location(f"adapter_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not isinstance(found, type) or not issubclass(found, (ChecklistModel, ScalarModel)):
        raise CannotStart(f"--adapter {adapter}: {name} must be a class derived from ChecklistModel or ScalarModel")
    return found


def arguments_of(line: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    own = Path(__file__).with_name("visionreward_video.py")
    parser = argparse.ArgumentParser(description="Serve a reward model of videos on 127.0.0.1.")
    parser.add_argument("--model", required=True, help="folder or hub name, such as THUDM/VisionReward-Video")
    parser.add_argument("--port", type=int, required=True, help="0: any free one")
    parser.add_argument("--revision", help="commit, branch or tag of the hub; default: the newest")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the Python code that comes with the model's weights"
    )
    parser.add_argument("--adapter", default=f"{own}:VisionRewardVideo", help="FILE.py:CLASS that runs the model")
    parser.add_argument("--batch", type=int, default=16, help="questions (or scored clips) at once on the device")
    parser.add_argument("--most-megabytes", type=int, default=256, help="of one request")
    arguments = parser.parse_args(line)
    if arguments.batch < 1 or arguments.most_megabytes < 1:
        parser.error("--batch and --most-megabytes must be 1 or more")
    return arguments


def main(line: Sequence[str] | None = None) -> int:
    """Load the model, say so, and serve until interrupted."""
    arguments = arguments_of(line)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        start = Start(arguments.model, arguments.revision, arguments.device, arguments.trust_remote_code)
        model = model_class(arguments.adapter)(start)
        with Service(arguments.port, Limits(arguments.most_megabytes * 1_000_000)) as service:
            print(f"loading {start.model}", flush=True)
            model.load()
            service.begin(Answering(model, arguments.batch))
            print(f"ready: http://{HOST}:{service.port} serves {start.model}", flush=True)
            service.serve_forever()
    except KeyboardInterrupt:
        return 0
    except CannotStart as error:
        print(f"cannot start: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
