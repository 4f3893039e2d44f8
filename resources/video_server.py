"""The backend that has videos rendered by a server with vllm-omni's /v1/videos: jobs, waited for and fetched.

Belongs here: what a job is asked for with, its states, and its file. Does not belong here: how many are under way and
keys (endpoint.py), what errors mean (server_answers.py), or remembering jobs (video_jobs.py).

The protocol is that of vllm-omni's documentation, serving/videos_api, and of its server: POST /videos takes a form and
answers with the job, GET /videos/{id} with its state (a failed one under an HTTP status of 400 or more, with the
job in the body all the same), GET /videos/{id}/content with an mp4 file.
"""

import asyncio
import io
import json
import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from resources.backend_settings import VideoServerSettings
from resources.endpoint import (
    CONNECT_SECONDS,
    FIRST_BACKOFF,
    LONGEST_BACKOFF,
    LONGEST_RETRY_AFTER,
    MOST_IN_VAIN,
    Endpoint,
    NoGoodAnswer,
    Session,
)
from resources.language_model import Identity
from resources.outcome import Outcome, Unavailable
from resources.server_answers import MayPass, RequestRefused, Server, error_of, json_of, quoted
from resources.video_generator import Clip
from resources.video_jobs import VideoJobs
from storage.ids import content_id

DEFAULT = "default"
"""Stands for what the server itself chooses. Said by the user: vllm-omni's own count of frames, for one, is 1."""

NEEDED = (("num_frames", "seconds"), ("size", "width"), ("size", "height"), ("num_inference_steps",))
GIVEN = ("prompt", "negative_prompt", "seed", "model")
GOING = frozenset({"queued", "pending", "in_progress", "processing", "running"})
DONE = frozenset({"completed", "succeeded"})
LARGEST_CLIP = 4 * 1024**3
"""Bytes of decoded frames. A server's file is a stranger's: a small one can hold more than any memory."""
_JOB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:=-]{0,199}")  # it becomes part of an address


@dataclass(frozen=True)
class _Job:
    """A job as the server tells of it."""

    id: str
    status: str
    error: str


class JobUnknown(Exception):
    """The server does not know this job, or no longer."""


class ServedVideoGenerator:
    """A text-to-video model behind a video server.

    A job's id is written down when the server has given it, in a file in the folder `jobs`, under the content of what
    it renders. After a crash, the same prompt and seed lead to the same job, which is not paid for again. The one
    job that the server takes on at the very moment of a crash, before its answer arrives, is lost.
    """

    def __init__(self, settings: VideoServerSettings, jobs: Path | None = None) -> None:
        self.settings = settings
        self.fps = settings.fps
        self._jobs = VideoJobs(jobs)
        self._endpoint = Endpoint(settings)
        self._refused = 0  # jobs in a row that the server did not take on

    def identity(self) -> Identity:
        """The model, not the server: vllm-omni refuses a request that names another model than it runs."""
        settings = self.settings
        negative: Identity = {} if settings.negative_prompt is None else {"negative_prompt": settings.negative_prompt}
        return {
            "backend": settings.backend,
            "model": settings.model,
            "revision": settings.revision,
            **{f"argument {name}": value for name, value in sorted(settings.arguments.items())},
            **negative,
        }

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Outcome[Clip]]:
        """One clip a prompt, in order. A job that fails, takes too long or whose file cannot be read is Failed.

        Raises Unavailable as Endpoint.each does, and for arguments that are missing.
        """
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many seeds, not {len(seeds)}")
        if not prompts:
            return []
        _check(self.settings.arguments)
        # Rows that want the same video share its job.
        wanted = list(dict.fromkeys(zip(prompts, seeds, strict=True)))
        clips = dict(zip(wanted, self._endpoint.each(wanted, self._film), strict=True))
        return [clips[row] for row in zip(prompts, seeds, strict=True)]

    def close(self) -> None:
        """Nothing to free: the model is the server's."""

    async def _film(self, session: Session, row: tuple[str, int]) -> Clip:
        """One clip: the job that was asked for before if there is one, else a new one."""
        key = self._key(*row)
        until = time.monotonic() + self.settings.job_timeout
        async with _Requests(self.settings) as requests:
            earlier = await asyncio.to_thread(self._jobs.get, key)
            if earlier is not None:
                try:
                    return await self._fetched(session, requests, key, earlier, until)
                except JobUnknown:
                    await asyncio.to_thread(self._jobs.forget, key)
            job = await self._asked_for(requests, row)
            await asyncio.to_thread(self._jobs.put, key, job.id)
            try:
                return await self._fetched(session, requests, key, job.id, until)
            except JobUnknown:
                await asyncio.to_thread(self._jobs.forget, key)
                raise RequestRefused(f"the server no longer knows the job {job.id} that it was asked for") from None

    async def _asked_for(self, requests: "_Requests", row: tuple[str, int]) -> _Job:
        """A new job. Raises Unavailable if the server refuses one row after the other: then it is the settings."""
        try:
            job = await requests.job("POST", "/videos", self._form(*row))
        except RequestRefused as error:
            self._refused += 1
            if self._refused >= MOST_IN_VAIN:
                raise Unavailable(
                    f"{self.settings.base_url} took on none of {self._refused} jobs in a row, the last one: {error}"
                ) from error
            raise
        self._refused = 0
        return job

    async def _fetched(self, session: Session, requests: "_Requests", key: str, job_id: str, until: float) -> Clip:
        """The clip of a job, waited for. A job that came to nothing is forgotten; one that is late is not."""
        while (job := await requests.job("GET", f"/videos/{job_id}")).status in GOING:
            if time.monotonic() >= until:
                raise RequestRefused(
                    f"no video within job_timeout = {self.settings.job_timeout:g} s: the job {job_id} is {job.status}, "
                    "and the next try waits for it again"
                )
            await asyncio.sleep(min(self.settings.poll_seconds, max(0.0, until - time.monotonic())))
        if job.status not in DONE:
            await asyncio.to_thread(self._jobs.forget, key)
            raise RequestRefused(f"the job ended as {job.status}: {job.error or 'the server does not say why'}")
        try:
            return await self._downloaded(session, job_id)
        except NoGoodAnswer:
            raise  # the video may well be there: the next try fetches it
        except RequestRefused as error:
            await asyncio.to_thread(self._jobs.forget, key)
            if getattr(error, "status", None) == 404:
                raise JobUnknown from error  # it remembers the job but has cleared away its file
            raise

    async def _downloaded(self, session: Session, job_id: str) -> Clip:
        tries = 1 + self.settings.retries
        for _ in range(tries):
            response = await session.request("GET", f"/videos/{job_id}/content")
            try:
                return await asyncio.to_thread(decoded, response.content)
            except ValueError as error:
                trouble = error
        raise RequestRefused(f"the job {job_id} has no video that can be read, in {tries} tries: {trouble}")

    def _key(self, prompt: str, seed: int) -> str:
        """What decides the clip and who knows the job, as one id."""
        identity = json.dumps(self.identity(), sort_keys=True)
        return content_id(_storable(prompt), str(seed), identity, self.settings.base_url)

    def _form(self, prompt: str, seed: int) -> dict[str, str]:
        settings = self.settings
        form: dict[str, int | float | str | bool] = {"prompt": _storable(prompt), "model": settings.model, "seed": seed}
        if settings.negative_prompt is not None:
            form["negative_prompt"] = settings.negative_prompt
        form |= {name: value for name, value in settings.arguments.items() if value != DEFAULT}
        return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in form.items()}


class _Requests:
    """The requests about one job that Session does not make: forms, and states told with the status of an error."""

    def __init__(self, settings: VideoServerSettings) -> None:
        key = os.environ.get(settings.key_variable, "").strip() if settings.key_variable else None
        self._settings = settings
        self._server = Server(settings.base_url, settings.key_variable, key)
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(settings.timeout, connect=min(CONNECT_SECONDS, settings.timeout)),
        )

    async def __aenter__(self) -> "_Requests":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def job(self, method: str, path: str, form: Mapping[str, str] | None = None) -> _Job:
        """The job that an answer tells of, asked for again while an error may pass.

        Raises JobUnknown, RequestRefused, and Unavailable where nobody answers or asking on makes no sense.
        """
        tries = 1 + self._settings.retries
        for count in range(tries):
            try:
                return await self._once(method, path, form)
            except MayPass as error:
                trouble = error
            if count + 1 < tries:
                await asyncio.sleep(_backoff(count, trouble.retry_after))
        if not trouble.connected:
            raise Unavailable(
                f"nobody answers at {self._settings.base_url} ({trouble}, {tries} tries): check that the server runs, "
                "that base_url is right, and that it can be reached from here"
            )
        raise RequestRefused(f"no good answer in {tries} tries, the last one: {trouble}")

    async def _once(self, method: str, path: str, form: Mapping[str, str] | None) -> _Job:
        # Values without a file name make a form of plain fields, in the encoding that the protocol asks for.
        fields = {name: (None, value) for name, value in form.items()} if form else None
        try:
            response = await self._client.request(method, self._settings.base_url + path, files=fields)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise MayPass(f"no connection ({self._described(error)})", connected=False) from None
        except httpx.RequestError as error:
            raise MayPass(f"no answer ({self._described(error)})") from None
        try:
            job = _job_of(response, self._server)
        except ValueError as error:
            job, unreadable = None, str(error)
        if job is not None and (method == "GET" or response.status_code < 300):
            return job
        if response.status_code < 300:
            raise MayPass(f"an answer that tells of no job: {unreadable}")
        if method == "GET" and response.status_code == 404:
            raise JobUnknown
        if "model mismatch" in response.text.lower():
            raise Unavailable(f"{self._settings.base_url}: {self._server.quoted(response.text)}; set model to its name")
        raise error_of(response, self._server, reached=False)

    def _described(self, error: Exception) -> str:
        return self._server.quoted(str(error)) or type(error).__name__


def decoded(content: bytes) -> Clip:
    """The frames of a video file, uint8 (frames, height, width, 3). Raises ValueError for one that is not whole."""
    import av

    container: Any
    frames: list[Clip] = []
    try:
        with av.open(io.BytesIO(content), mode="r", format="mp4") as container:
            stream = container.streams.video[0]
            for frame in container.decode(stream):
                if (len(frames) + 1) * frame.height * frame.width * 3 > LARGEST_CLIP:
                    raise ValueError(f"it holds more than {LARGEST_CLIP} bytes of frames")
                frames.append(frame.to_ndarray(format="rgb24"))
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"no video that can be decoded ({quoted(str(error)) or type(error).__name__})") from error
    if not frames or (stream.frames and len(frames) != stream.frames):
        raise ValueError(f"{len(frames)} of its {stream.frames} frames are there")
    return np.stack(frames)


def _check(arguments: Mapping[str, object]) -> None:
    for name in GIVEN:
        if name in arguments:
            raise Unavailable(f"video_generator.arguments.{name} cannot be set: it has a place of its own")
    missing = [" or ".join(names) for names in NEEDED if not any(name in arguments for name in names)]
    if missing:
        raise Unavailable(
            f"video_generator.arguments need {', '.join(missing)}: set what the model was made for, or `{DEFAULT}` for "
            "what the server chooses"
        )


def _job_of(response: httpx.Response, server: Server) -> _Job:
    """Raises ValueError for what tells of no job."""
    body = json_of(response)
    if not isinstance(body, dict) or not isinstance(body.get("status"), str):
        raise ValueError("it is no JSON object with a status")
    job_id = body.get("id")
    if not isinstance(job_id, str) or not _JOB_ID.fullmatch(job_id):
        raise ValueError("its id is none that a job can have")
    error = body.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return _Job(job_id, server.quoted(body["status"]), server.quoted(message if isinstance(message, str) else ""))


def _storable(text: str) -> str:
    """Text that can be sent: half a surrogate pair, which no encoding has, is replaced."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _backoff(tries: int, retry_after: float | None) -> float:
    spread = random.random()  # noqa: S311 (keeps jobs from asking all at once; no secret)
    if retry_after is not None:
        return min(retry_after, LONGEST_RETRY_AFTER) + spread * FIRST_BACKOFF
    return spread * min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0**tries)
