"""The reward that is VisionReward, or a model that gives scores, behind the service of services/visionreward.

Belongs here: what the service is asked, and what its answers are as answers to a checklist. Does not belong here:
the service, how a server is asked (endpoint.py), or what answers are worth (ml/checklist.py).
"""

import asyncio
import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from ml.checklist import (
    Checklist,
    Scale,
    UnreadableAnswer,
    UnusableChecklist,
    as_quoted,
    checklist_of_scores,
    read_answer,
)
from resources.backend_settings import VisionRewardSettings
from resources.checklist_files import load_checklist
from resources.endpoint import Endpoint, RequestRefused, Session
from resources.language_model import Identity
from resources.outcome import Failed, Outcome, Skipped, Unavailable
from resources.sent_clips import SentClips
from resources.server_answers import quoted
from resources.video_generator import Clip
from resources.video_reward import Answer
from storage.ids import content_id

PROTOCOL = 1
SECONDS_FOR_HEALTH = 30.0
RETRIES_FOR_HEALTH = 1
BYTES_AROUND = 10_000
"""Of a request beside its clips, and more."""


@dataclass(frozen=True)
class _Service:
    """What the service says of itself. `scales` is None for a model that answers questions."""

    model: str
    revision: str | None
    scales: tuple[Scale, ...] | None
    most_bytes: int
    most_clips: int


class VisionReward:
    """A reward model in an environment of its own.

    With a checklist, the model answers its questions. Without one, it must be a model that gives scores: these are the
    checklist then (ml.checklist.checklist_of_scores), and asking for `checklist` asks the service.

    `fps` is that of the clips: the service chooses frames by their time.
    """

    def __init__(self, settings: VisionRewardSettings, *, fps: float = 8.0) -> None:
        self.settings = settings
        self._fps = fps
        self._endpoint = Endpoint(settings)
        self._asking_health = Endpoint(
            settings.model_copy(update={"retries": min(settings.retries, RETRIES_FOR_HEALTH)})
        )
        if settings.checklist is not None:
            self.checklist = load_checklist(settings.checklist)

    @cached_property
    def checklist(self) -> Checklist:
        """The questions, or the names of the scores. Raises Unavailable where the service must be asked and cannot."""
        return _checklist_of(self._service())

    def identity(self) -> Identity:
        settings = self.settings
        return {
            "backend": settings.backend,
            "protocol": PROTOCOL,
            "model": settings.model,
            "revision": settings.revision,
            "fps": self._fps,
            "checklist": f"{self.checklist.name} {self.checklist.version}",
            "checklist_content": content_id(self.checklist.to_json()),
        }

    def answer(self, queries: Sequence[str], clips: Sequence[Clip]) -> list[Outcome[list[Answer]]]:
        """As VideoReward says. Raises Unavailable if the service does not run, or serves another model."""
        rows = list(zip(queries, clips, strict=True))
        if not rows:
            return []
        service = self._service()
        size = min(self.settings.batch_size, service.most_clips)
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        with SentClips() as files:

            async def ask(session: Session, batch: Sequence[tuple[str, Clip]]) -> list[Outcome[list[Answer]]]:
                sent = await asyncio.to_thread(self._sent, batch, files)
                return await self._ask(session, service, sent)

            outcomes = self._endpoint.each(batches, ask)
        return [one for batch, outcome in zip(batches, outcomes, strict=True) for one in _each_of(batch, outcome)]

    def close(self) -> None:
        """Nothing to free: the model is the service's."""

    # ---- the service -------------------------------------------------------------------------------------------------

    def _service(self) -> _Service:
        """What runs there. Raises Unavailable, with the command that starts it, if it is not what is wanted."""

        async def ask(session: Session, _: None) -> _Service:
            return await session.request_json("GET", "/health", _service_of, timeout=SECONDS_FOR_HEALTH)

        try:
            (outcome,) = self._asking_health.each([None], ask)
        except Unavailable as error:
            raise self._not_there(str(error)) from error
        if isinstance(outcome, Failed | Skipped):
            raise self._not_there(outcome.reason)
        settings = self.settings
        if outcome.model != settings.model or (settings.revision and outcome.revision != settings.revision):
            raise Unavailable(
                f"the service at {settings.base_url} serves {_named(outcome.model, outcome.revision)}, but the profile "
                f"asks for {_named(settings.model, settings.revision)}: start it with `{self._command()}`, or change "
                "`model` or `base_url` of the video reward"
            )
        if outcome.scales is None and settings.checklist is None:
            raise Unavailable(f"{outcome.model} answers questions: set `checklist` of the video reward to its files")
        if outcome.scales is not None and settings.checklist is not None:
            raise Unavailable(f"{outcome.model} gives scores of its own: remove `checklist` of the video reward")
        return outcome

    def _not_there(self, reason: str) -> Unavailable:
        return Unavailable(
            f"the reward service at {self.settings.base_url} does not answer: start it with `{self._command()}` in its "
            f"own environment (services/visionreward/README.md), and wait until it says ready ({reason})"
        )

    def _command(self) -> str:
        port = urlsplit(self.settings.base_url).port or 80
        revision = f" --revision {self.settings.revision}" if self.settings.revision else ""
        return f"python services/visionreward/server.py --model {self.settings.model} --port {port}{revision}"

    # ---- asking ------------------------------------------------------------------------------------------------------

    def _sent(self, batch: Sequence[tuple[str, Clip]], files: SentClips) -> "list[dict[str, Any] | Failed]":
        """Each clip as it goes into a request, or why it cannot."""
        sent: list[dict[str, Any] | Failed] = []
        for query, clip in batch:
            try:
                content = files.mp4(clip, self._fps).read_bytes()
            except ValueError as error:
                sent.append(Failed(str(error)))
                continue
            part: dict[str, Any] = {"mp4": base64.b64encode(content).decode("ascii"), "query": as_quoted(query)}
            if self.settings.checklist is not None:
                part["questions"] = [question.ask_quoting(query) for question in self.checklist.questions]
            sent.append(part)
        return sent

    async def _ask(
        self, session: Session, service: _Service, sent: "Sequence[dict[str, Any] | Failed]"
    ) -> list[Outcome[list[Answer]]]:
        """The outcome of each clip of a batch, in as many requests as their sizes ask for."""
        outcomes: list[Outcome[list[Answer]]] = [part if isinstance(part, Failed) else Failed("") for part in sent]
        for places in _requests([0 if isinstance(part, Failed) else _size(part) for part in sent], service.most_bytes):
            parts = [part for place in places if isinstance(part := sent[place], dict)]
            for place, outcome in zip(places, await self._ask_together(session, service, parts), strict=True):
                outcomes[place] = outcome
        return outcomes

    async def _ask_together(
        self, session: Session, service: _Service, parts: Sequence[dict[str, Any]]
    ) -> list[Outcome[list[Answer]]]:
        """The outcomes of one request; if it comes to nothing, each clip gets one of its own."""
        try:
            results = await session.request_json(
                "POST", "/answers", lambda body: _results(body, service, len(parts)), json={"clips": list(parts)}
            )
        except RequestRefused as error:
            if len(parts) == 1:
                return [Failed(str(error))]
            return [one for part in parts for one in await self._ask_together(session, service, [part])]
        return [self._read(result, service) for result in results]

    def _read(self, result: Any, service: _Service) -> Outcome[list[Answer]]:
        """The answers about one clip."""
        try:
            if not isinstance(result, dict):
                raise ValueError("the service gave no result for it")
            if "error" in result:
                return Failed(quoted(str(result["error"])))
            if service.scales is not None:
                return _scores(result.get("scores"), service.scales)
            return _answers(result.get("answers"), self.checklist.ids)
        except ValueError as error:
            return Failed(quoted(str(error)))


def _requests(sizes: Sequence[int], most: int) -> list[list[int]]:
    """The places of clips in batches of at most so many bytes; clips of size 0 are left out.

    A clip that is too big by itself gets a request of its own: the service says so.
    """
    requests: list[list[int]] = []
    room = 0
    for place, size in enumerate(sizes):
        if size == 0:
            continue
        if size > room:
            requests.append([])
            room = most - BYTES_AROUND
        requests[-1].append(place)
        room -= size
    return requests


def _size(part: dict[str, Any]) -> int:
    """Bytes of a clip in a request, at most."""
    texts = [part["query"], *part.get("questions", ())]
    return len(part["mp4"]) + sum(len(text.encode()) + 10 for text in texts) + 100


def _each_of(batch: Sequence[Any], outcome: Outcome[list[Outcome[list[Answer]]]]) -> list[Outcome[list[Answer]]]:
    if isinstance(outcome, Failed | Skipped):
        return [outcome] * len(batch)
    return outcome


# ---- what the service says -------------------------------------------------------------------------------------------


def _service_of(body: Any) -> _Service:
    """What /health says. Raises ValueError for anything but the service."""
    if not isinstance(body, dict) or body.get("protocol") != PROTOCOL:
        raise ValueError(f"this is no reward service of protocol {PROTOCOL}")
    try:
        scales = None if body["kind"] == "checklist" else tuple(_scale(score) for score in body["scores"])
        service = _Service(
            body["model"], body.get("revision"), scales, int(body["most_bytes"]), int(body["most_clips"])
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"its /health lacks or misshapes {error}") from error
    if not isinstance(service.model, str) or service.most_clips < 1 or service.scales == ():
        raise ValueError("its /health makes no sense")
    return service


def _scale(score: Any) -> Scale:
    try:
        return Scale(
            str(score["name"]),
            float(score["low"]),
            float(score["high"]),
            float(score["weight"]),
            str(score.get("text", "")),
        )
    except UnusableChecklist as error:
        raise ValueError(str(error)) from error


def _checklist_of(service: _Service) -> Checklist:
    """The scores as a checklist; another weight, scale or name makes another version."""
    assert service.scales is not None
    version = content_id(json.dumps([vars(scale) for scale in service.scales], sort_keys=True))[:12]
    try:
        return checklist_of_scores(service.model, version, service.scales)
    except UnusableChecklist as error:
        raise Unavailable(f"the scores of {service.model} make no checklist: {error}") from error


def _results(body: Any, service: _Service, count: int) -> list[Any]:
    """The results of a request. Raises ValueError for an answer that is malformed, or not this model's."""
    results = body.get("results") if isinstance(body, dict) else None
    if not isinstance(results, list) or len(results) != count:
        raise ValueError(f"it does not hold {count} results")
    if (body.get("model"), body.get("revision")) != (service.model, service.revision):
        raise ValueError(f"it is from {quoted(str(body.get('model')))}, and {service.model} was asked")
    return results


def _answers(given: Any, names: Sequence[str]) -> list[Answer]:
    """Answers to questions. Raises ValueError, naming question and answer."""
    if not isinstance(given, list) or len(given) != len(names):
        raise ValueError(f"the service did not answer {len(names)} questions")
    return [_answer(name, one) for name, one in zip(names, given, strict=True)]


def _answer(name: str, given: Any) -> Answer:
    said = given.get("answer") if isinstance(given, dict) else None
    try:
        yes = read_answer(said if isinstance(said, str) else repr(said))
    except UnreadableAnswer as error:
        raise ValueError(f"question {name!r}: {error}") from error
    probability = given.get("probability")
    if probability is None:
        return Answer(name, yes, float(yes))
    if isinstance(probability, bool) or not isinstance(probability, int | float) or not 0 <= probability <= 1:
        raise ValueError(f"question {name!r}: the probability {str(probability)[:20]!r} is none")
    return Answer(name, yes, float(probability))


def _scores(given: Any, scales: Sequence[Scale]) -> list[Answer]:
    """Scores as answers: the probability is the share of the scale. Raises ValueError for a score off its scale."""
    if not isinstance(given, dict):
        raise ValueError("the service gave no scores")
    answers = []
    for scale in scales:
        value = given.get(scale.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"the score {scale.name!r} is {str(value)[:20]!r}, not a number")
        share = scale.share(value)
        answers.append(Answer(scale.name, share > 0.5, share))
    return answers


def _named(model: str, revision: str | None) -> str:
    return quoted(f"{model} at {revision}" if revision else model)
