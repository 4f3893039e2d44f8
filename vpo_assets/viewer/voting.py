"""Blind votes: what an annotator is asked next, and votes into the lake, each once.

Belongs here: what a vote must be, and storing it. Does not belong here: who is asked what (comparisons.py), pages.

A vote stays: methods are told once it is stored, so a changed one would not be blind any more.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from storage.ids import content_id
from storage.lake import Transaction
from storage.tables import VOTES
from vpo_assets.viewer.comparisons import Candidate, Comparison, assignment, comparisons
from vpo_assets.viewer.results import Results

Choice = Literal["left", "right", "tie", "skip"]
_NAME = re.compile(r"\w[\w .'@+-]*")
LONGEST_NAME = 40


class UnusableName(ValueError):
    """A name that nobody can vote under; says what is allowed."""


class UnknownComparison(LookupError):
    """A comparison that there is not, or not any more."""


class AlreadyVoted(ValueError):
    """Another vote of the same annotator on the same comparison is stored."""


class Vote(BaseModel):
    """What the page sends."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    annotator: str = Field(max_length=200)
    comparison_id: str = Field(max_length=100)
    choice: Choice


@dataclass(frozen=True)
class Progress:
    """What an annotator is asked next, None when all is done, with its clips on the left and on the right."""

    comparison: Comparison | None
    sides: tuple[Candidate, ...]
    done: int
    total: int


@dataclass(frozen=True)
class Stored:
    """A vote is in the lake. `new`: it was not there before. The methods may be told now."""

    new: bool
    left: str
    right: str


def annotator_name(name: str) -> str:
    """The name as votes carry it: capitals and the amount of white space make no other person. Raises UnusableName."""
    folded = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    if not folded:
        raise UnusableName("a vote needs a name: any that you will use again")
    if len(folded) > LONGEST_NAME or not _NAME.fullmatch(folded):
        raise UnusableName(
            f"a name has at most {LONGEST_NAME} letters, digits, spaces and . ' @ + - _, and begins with a letter or "
            "digit"
        )
    return folded


class Polling:
    """Blind votes on one target. `methods`: those compared, all for None."""

    def __init__(self, results: Results, methods: Sequence[str] | None = None) -> None:
        self._results = results
        self._methods = methods
        self._table = VOTES.at(results.target)

    def progress(self, annotator: str) -> Progress:
        """What this annotator is asked next. Raises UnusableName, NothingToCompare."""
        name = annotator_name(annotator)
        found = comparisons(self._results, self._methods)
        rows = self._results.lake.read(self._table, columns=["comparison_id"], where="annotator = ?", parameters=[name])
        voted = set(rows["comparison_id"].to_pylist())
        following = next((c for c in assignment(list(found.values()), name) if c.comparison_id not in voted), None)
        sides = following.sides(name) if following else ()
        return Progress(following, sides, len(voted & set(found)), len(found))

    def side(self, annotator: str, comparison_id: str, side: Literal["left", "right"]) -> Candidate:
        """The clip on one side for this annotator. Raises UnusableName, UnknownComparison."""
        left, right = self._comparison(comparison_id).sides(annotator_name(annotator))
        return left if side == "left" else right

    def vote(self, vote: Vote) -> Stored:
        """Store a vote; one that is stored already is left as it is.

        Raises UnusableName, UnknownComparison, AlreadyVoted for another choice than the stored one.
        """
        name = annotator_name(vote.annotator)
        comparison = self._comparison(vote.comparison_id)
        row = self._row(comparison, name, vote.choice)
        new = False

        def store(transaction: Transaction) -> None:
            nonlocal new
            new = bool(transaction.insert(self._table, row))
            if not new:
                (stored,) = transaction.query(
                    f"SELECT choice FROM {self._table.qualified} WHERE vote_id = ?", [row["vote_id"][0].as_py()]
                ).to_pylist()
                if stored["choice"] != vote.choice:
                    raise AlreadyVoted(
                        f"{name} has voted {stored['choice']} on this comparison already, and a vote is not changed "
                        "once it is stored"
                    )

        self._results.lake.commit({"asset": self._table.label, "text": "a vote"}, store)
        left, right = comparison.sides(name)
        return Stored(new, left.method, right.method)

    def _comparison(self, comparison_id: str) -> Comparison:
        found = comparisons(self._results, self._methods).get(comparison_id)
        if found is None:
            raise UnknownComparison(
                "there is no such comparison: the evaluation may have been made anew, so load the page again"
            )
        return found

    def _row(self, comparison: Comparison, name: str, choice: Choice) -> pa.Table:
        left, right = comparison.sides(name)
        row = {
            "vote_id": content_id("vote", name, comparison.comparison_id),
            "comparison_id": comparison.comparison_id,
            "annotator": name,
            "query_id": comparison.query_id,
            "choice": choice,
            "left_method": left.method,
            "right_method": right.method,
            "left_video_id": left.video_id,
            "right_video_id": right.video_id,
            "left_policy": left.policy,
            "right_policy": right.policy,
            "voted_at": datetime.now(UTC),
        }
        return pa.Table.from_pylist([row], schema=self._table.arrow_schema)
