"""What is asked of the server and what it answers, in JSON.

GET /health -> {"protocol": 1, "model": ..., "revision": ..., "kind": "checklist" or "scalar", "scores": null or
[{"name", "low", "high", "weight", "text"}], "most_bytes": of a request, "most_clips": in a request}

POST /answers {"clips": [{"mp4": base64 of a video file, "query": ..., "questions": [...]}]}
-> {"model": ..., "revision": ..., "results": [...]}, one result a clip, in order:
{"answers": [{"answer": "yes" or "no", "probability": 0 to 1 or null}]}, one a question, in order, or
{"scores": {name: number}} or {"error": why this clip has neither}

`questions` is for models of the kind checklist and may be left out for scalar ones. Errors of a whole request have a
status of 400 and above and the body {"error": ...}.

Belongs here: reading requests, and the limits of one. Does not belong here: HTTP (server.py), models.
"""

import base64
import binascii
from dataclasses import asdict, dataclass
from typing import Any

from services.visionreward.answering import AskedClip
from services.visionreward.interface import ChecklistModel, ScalarModel

PROTOCOL = 1
MOST_CLIPS = 64
MOST_QUESTIONS = 1000
LONGEST_TEXT = 20_000  # characters of a query or a question


class BadRequest(ValueError):
    """A request that cannot be answered, with what is wrong with it."""


@dataclass(frozen=True)
class Limits:
    """How much one request may hold."""

    most_bytes: int


def health(model: ChecklistModel | ScalarModel, limits: Limits) -> dict[str, Any]:
    """What the server says of itself."""
    return {
        "protocol": PROTOCOL,
        "model": model.start.model,
        "revision": model.start.revision,
        "kind": model.kind,
        "scores": [asdict(score) for score in model.scores] if isinstance(model, ScalarModel) else None,
        "most_bytes": limits.most_bytes,
        "most_clips": MOST_CLIPS,
    }


def asked_clips(body: Any, *, with_questions: bool) -> list[AskedClip]:
    """The clips of a request. Raises BadRequest."""
    clips = body.get("clips") if isinstance(body, dict) else None
    if not isinstance(clips, list) or not 0 < len(clips) <= MOST_CLIPS:
        raise BadRequest(f"clips must be a list of 1 to {MOST_CLIPS} clips")
    return [_asked_clip(clip, place, with_questions) for place, clip in enumerate(clips)]


def _asked_clip(clip: Any, place: int, with_questions: bool) -> AskedClip:
    where = f"clips[{place}]"
    if not isinstance(clip, dict):
        raise BadRequest(f"{where} must be an object")
    questions = clip.get("questions") or []
    if with_questions and not (isinstance(questions, list) and 0 < len(questions) <= MOST_QUESTIONS):
        raise BadRequest(f"{where}.questions must be a list of 1 to {MOST_QUESTIONS} questions")
    if not with_questions and questions:
        raise BadRequest(f"{where}.questions: this model gives scores and takes no questions")
    return AskedClip(
        _content(clip.get("mp4"), where),
        _text(clip.get("query"), f"{where}.query"),
        tuple(_text(question, f"{where}.questions[{number}]") for number, question in enumerate(questions)),
    )


def _content(encoded: Any, where: str) -> bytes:
    try:
        if not isinstance(encoded, str):
            raise ValueError
        return base64.b64decode(encoded.encode("ascii"), validate=True)
    except (ValueError, binascii.Error):
        raise BadRequest(f"{where}.mp4 must be the base64 text of a video file") from None


def _text(text: Any, where: str) -> str:
    if not isinstance(text, str) or len(text) > LONGEST_TEXT:
        raise BadRequest(f"{where} must be text of at most {LONGEST_TEXT} characters")
    return text
