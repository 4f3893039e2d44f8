"""A video server to test against: vllm-omni's /v1/videos over real HTTP on 127.0.0.1, with failures by plan.

Here: the server, in threads, and the tiny clips that it renders. Not here: what is tested with it.
"""

import email
import email.policy
import hashlib
import io
import json
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import numpy as np

MODEL = "tiny/wan"


@dataclass
class StubJob:
    """A job, and when it is done."""

    id: str
    form: dict[str, str]
    done_at: float
    error: tuple[int, str] | None = None  # the status and words that it fails with

    @property
    def status(self) -> str:
        if time.monotonic() < self.done_at:
            return "in_progress"
        return "failed" if self.error else "completed"


@dataclass
class Plan:
    """What goes wrong, for prompts that contain the plan's word; each list is used up from its start.

    A status is answered instead of what was asked for; "cut" breaks off in the middle.
    """

    on_create: list[int | str] = field(default_factory=list)
    on_status: list[int | str] = field(default_factory=list)
    on_content: list[int | str] = field(default_factory=list)
    fails: list[tuple[int, str]] = field(default_factory=list)  # jobs, with status and words
    seconds: float = 0.0  # that a job takes


class StubVideoServer:
    """`with StubVideoServer() as stub:`; counts are for reading from the test's thread."""

    def __init__(self, **plans: Plan) -> None:
        self.plans = plans
        self.jobs: dict[str, StubJob] = {}
        self.asked_for: Counter[tuple[str, str]] = Counter()  # jobs taken on, by prompt and seed
        self.requests: deque[tuple[str, str, dict[str, str]]] = deque()  # method, path, headers
        self.most_under_way = 0
        self.render: Callable[[dict[str, str]], bytes] = render_mp4
        self._lock = threading.Lock()

    @property
    def base_url(self) -> str:
        """Its address, up to and with /v1."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "StubVideoServer":
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                stub._create(self)

            def do_GET(self) -> None:
                stub._get(self)

            def log_message(self, *_: object) -> None:
                """Silence."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def forget_jobs(self) -> None:
        """As after a restart."""
        self.jobs.clear()

    def finish_jobs(self) -> None:
        """Everything is rendered now."""
        for job in self.jobs.values():
            job.done_at = 0.0

    # ---- requests ----------------------------------------------------------------------------------------------------

    def _create(self, request: BaseHTTPRequestHandler) -> None:
        form = _form_of(request)
        self.requests.append(("POST", request.path, dict(request.headers)))
        plan = self._plan_for(form.get("prompt", ""))
        if request.path != "/v1/videos":
            return _answer(request, 404, {"detail": "Not Found"})
        if "prompt" not in form:
            return _answer(request, 422, {"detail": "prompt: field required"})
        if form.get("model", MODEL) != MODEL:
            said = f"Model mismatch: request specifies '{form['model']}' but server is running '{MODEL}'."
            return _answer(request, 400, {"detail": said})
        if self._goes_wrong(request, plan.on_create):
            return None
        with self._lock:
            job = StubJob(
                f"video_gen_{len(self.jobs)}-{hashlib.sha256(repr(sorted(form.items())).encode()).hexdigest()[:8]}",
                form,
                time.monotonic() + plan.seconds,
                plan.fails.pop(0) if plan.fails else None,
            )
            self.jobs[job.id] = job
            self.asked_for[form["prompt"], form.get("seed", "")] += 1
            going = sum(job.status == "in_progress" for job in self.jobs.values())
            self.most_under_way = max(self.most_under_way, going)
        return _answer(request, 200, {**_told(job), "status": "queued", "error": None})

    def _get(self, request: BaseHTTPRequestHandler) -> None:
        self.requests.append(("GET", request.path, dict(request.headers)))
        job_id, _, rest = request.path.removeprefix("/v1/videos/").partition("/")
        job = self.jobs.get(job_id)
        if job is None or rest not in ("", "content"):
            return _answer(request, 404, {"detail": "Video not found"})
        plan = self._plan_for(job.form["prompt"])
        if rest == "content":
            return self._content(request, job, plan)
        if self._goes_wrong(request, plan.on_status):
            return None
        # As vllm-omni does: a failed job is told of under the status of its error.
        failed = job.error if job.status == "failed" else None
        return _answer(request, failed[0] if failed else 200, _told(job))

    def _content(self, request: BaseHTTPRequestHandler, job: StubJob, plan: Plan) -> None:
        if job.status != "completed":
            return _answer(request, 404, {"detail": "Generation is still in-progress"})
        content = self.render(job.form)
        if plan.on_content and plan.on_content[0] == "truncated":
            plan.on_content.pop(0)
            content = content[: len(content) // 2]
        elif plan.on_content and plan.on_content[0] == "garbage":
            plan.on_content.pop(0)
            content = b"<html>no video</html>"
        elif self._goes_wrong(request, plan.on_content, content):
            return None
        return _answer(request, 200, content, "video/mp4")

    def _goes_wrong(
        self, request: BaseHTTPRequestHandler, planned: list[int | str], content: bytes = b"x" * 100
    ) -> bool:
        """Answer as the plan has it next, if it has something."""
        with self._lock:
            what = planned.pop(0) if planned else None
        if what is None:
            return False
        if what == "cut":
            request.send_response(200)
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content[: len(content) // 2])
            request.close_connection = True
        elif isinstance(what, int):
            _answer(request, what, {"error": {"code": what, "message": "it broke\x1b[31m"}})
        else:
            _answer(request, 200, what.encode())
        return True

    def _plan_for(self, prompt: str) -> Plan:
        return next((plan for word, plan in self.plans.items() if word in prompt), Plan())


def _told(job: StubJob) -> dict[str, Any]:
    failed = job.status == "failed" and job.error
    return {
        "id": job.id,
        "object": "video",
        "model": MODEL,
        "prompt": job.form["prompt"],
        "status": job.status,
        "progress": 0,
        "created_at": 1_700_000_000,
        "error": {"code": failed[0], "message": failed[1]} if failed else None,
    }


def _form_of(request: BaseHTTPRequestHandler) -> dict[str, str]:
    """The plain fields of a multipart form."""
    content = request.rfile.read(int(request.headers.get("Content-Length", "0")))
    head = f"Content-Type: {request.headers.get('Content-Type', '')}\r\n\r\n".encode()
    message = email.message_from_bytes(head + content, policy=email.policy.HTTP)
    form: dict[str, str] = {}
    for part in message.iter_parts():  # type: ignore[attr-defined]
        assert part.get_filename() is None
        value = part.get_payload(decode=True)
        form[str(part.get_param("name", header="content-disposition"))] = value.decode("utf-8")
    return form


def _answer(
    request: BaseHTTPRequestHandler, status: int, body: dict[str, Any] | bytes, kind: str = "application/json"
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request.send_response(status)
    request.send_header("Content-Type", kind)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)


def render_mp4(form: dict[str, str]) -> bytes:
    """A clip of coloured blocks that follow from the form, as an mp4 file; the same bytes for the same form."""
    return _rendered(tuple(sorted(form.items())))


@cache  # on a busy machine the encoder does not always write the same bytes
def _rendered(items: tuple[tuple[str, str], ...]) -> bytes:
    import av

    form = dict(items)
    frames, height, width = int(form["num_frames"]), int(form["height"]), int(form["width"])
    digest = hashlib.sha256(repr(list(items)).encode()).digest()
    rng = np.random.default_rng(list(digest))
    blocks = rng.integers(0, 256, size=(frames, height // 16, width // 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    container: Any
    with av.open(buffer, mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in blocks.repeat(16, axis=1).repeat(16, axis=2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
