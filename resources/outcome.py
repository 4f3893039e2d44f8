"""What became of one row that a backend was given: its result, or why there is none.

Belongs here: the two ways of having no result, and the error of a backend that cannot work at all. Does not belong
here: what is done about them (storage/refresh.py quarantines failed rows and leaves skipped ones for the next run).
"""

from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from storage.refresh import StopRefresh

Result = TypeVar("Result")


@dataclass(frozen=True)
class Failed:
    """This row has no result, and the row (or the answer to it) is to blame. It goes into quarantine."""

    reason: str


@dataclass(frozen=True)
class Skipped:
    """This row was not tried to its end because nothing can go on: the budget is spent, the server is gone."""

    reason: str


Outcome: TypeAlias = Result | Failed | Skipped


class Unavailable(StopRefresh):
    """A backend that cannot work at all, for a cause that no row is to blame for; with what to do about it."""
