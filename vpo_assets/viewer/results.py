"""What there is to look at of one target: its tables, its checklist, its clips.

Belongs here: what all pages share when they read the lake. Does not belong here: what a single page shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ml.checklist import Question
from resources.outcome import Unavailable
from storage.lake import Lake
from storage.tables import EVAL_REWARDS, EVAL_VIDEOS, RAW_PROMPTS, VIDEOS, Table
from vpo_assets.evaluation_tables import methods_of
from vpo_assets.platform import Platform

MIME_TYPES = {".webp": "image/webp", ".mp4": "video/mp4"}

Row = dict[str, Any]
Marks = list[bool | None]


class UnknownClip(LookupError):
    """A video id that this target has no video of, or a video whose file is gone."""


@dataclass(frozen=True)
class ShownClip:
    """A clip on a page, with its mean answer per dimension, 0 to 1. `score` is None where no reward was given yet."""

    video_id: str
    uri: str
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    score: float | None = None
    dimensions: Mapping[str, float] = field(default_factory=dict)
    answers: Mapping[str, bool] = field(default_factory=dict)

    @property
    def moving(self) -> bool:
        """Whether it is a video for the browser; else it is an animated picture."""
        return self.uri.endswith(".mp4")

    @property
    def tiny(self) -> bool:
        """So small that its pixels are to be seen as such when it is enlarged."""
        return max(self.width or 0, self.height or 0) <= 160


def clip_of(row: Row) -> ShownClip:
    """A clip from a row of a video table joined with its rewards."""
    return ShownClip(
        row["video_id"],
        row["uri"],
        row["width"],
        row["height"],
        row["seed"],
        row["score"],
        {entry["dimension"]: entry["score"] for entry in row["dimensions"] or ()},
        {entry["question"]: entry["yes"] for entry in row["answers"] or ()},
    )


@dataclass(frozen=True)
class Source:
    """Where a query came from: its text as the user wrote it, file and line."""

    text: str
    file: str
    line: int | None


class Results:
    """One target of a platform, as it is now: every page reads the lake anew."""

    def __init__(self, platform: Platform, target: str) -> None:
        self.platform = platform
        self.target = target
        self.feedback = platform.target(target).feedback_from or target
        """The target whose candidates the pairs were selected from."""

    @property
    def lake(self) -> Lake:
        return self.platform.lake

    @property
    def methods(self) -> list[str]:
        """What the evaluation compares, in the order in which people compare them."""
        return methods_of(self.platform, self.target)

    @cached_property
    def _questions(self) -> Mapping[str, Question]:
        try:
            checklist = self.platform.video_rewards[self.feedback].checklist
        except Unavailable:  # a checklist whose files are elsewhere: the ids have to do
            return {}
        return {question.id: question for question in checklist.questions}

    @property
    def dimensions(self) -> list[str]:
        """Names of the reward's dimensions, in the order of the checklist."""
        return list(dict.fromkeys(question.dimension for question in self._questions.values()))

    def question(self, identifier: str, query: str) -> str:
        """A question of the checklist as it was put about a query; its id where the checklist does not know it."""
        found = self._questions.get(identifier)
        return identifier if found is None else found.ask(query)

    def marks(self, clips: Sequence[ShownClip], query: str) -> dict[str, Marks]:
        """{question: its answer for each clip}, in the order of the checklist."""
        asked = dict.fromkeys([*self._questions, *(name for clip in clips for name in clip.answers)])
        marks = {name: [clip.answers.get(name) for clip in clips] for name in asked}
        return {
            self.question(name, query): answers
            for name, answers in marks.items()
            if any(mark is not None for mark in answers)
        }

    def clip_file(self, video_id: str) -> tuple[Path, str]:
        """The file of a video of this target on this machine, and its MIME type. Raises UnknownClip."""
        for table in (VIDEOS.at(self.feedback), EVAL_VIDEOS.at(self.target)):
            rows = self.lake.read(table, columns=["uri"], where="video_id = ?", parameters=[video_id])
            if rows.num_rows:
                return self.file_of(rows["uri"][0].as_py())
        raise UnknownClip("there is no video of this id")

    def file_of(self, uri: str) -> tuple[Path, str]:
        """The file of a uri of the video store, and its MIME type. Raises UnknownClip."""
        path = self.platform.videos.path(uri)
        if not path.is_file():
            raise UnknownClip("the video's file is gone: a refresh renders it again")
        return path, MIME_TYPES[path.suffix]

    def sources(self, query_ids: Sequence[str]) -> dict[str, Source]:
        """Where queries came from, by their id."""
        rows = self.rows_by(RAW_PROMPTS, "query_id", query_ids)
        return {row["query_id"]: Source(row["text"], row["source"] or "", row["source_line"]) for row in rows}

    def rows_by(self, table: Table, column: str, values: Sequence[str | None]) -> list[Row]:
        """Rows of a table whose column has one of these values."""
        wanted = [value for value in values if value is not None]
        rows: list[Row] = self.lake.read(
            table, where=f"{column} IN (SELECT unnest(?::VARCHAR[]))", parameters=[wanted]
        ).to_pylist()
        return rows

    @property
    def filmed(self) -> str:
        """SELECT of the held-out videos with their rewards: of those made several times, the last ones."""
        return (
            "SELECT v.*, r.score, r.dimensions, r.answers "
            f"FROM {EVAL_VIDEOS.at(self.target).qualified} AS v "
            f"LEFT JOIN {EVAL_REWARDS.at(self.target).qualified} AS r ON r.video_id = v.video_id "
            "QUALIFY row_number() OVER "
            "(PARTITION BY v.query_id, v.method, v.seed ORDER BY v.made_at DESC, v.video_id) = 1"
        )
