"""What a visitor asks to see: filters, orders and pages, read from an address and checked.

Belongs here: which values are allowed, and how a wrong one is refused. Does not belong here: the SQL they become.
"""

from collections.abc import Mapping
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vpo_assets.report.plain_text import one_line

PAGE_ROWS = 10


class UnusableFilter(ValueError):
    """A value in an address that a filter cannot take; says which and what is allowed."""


class Filter(BaseModel):
    """What every list can be asked for. `text`: words that must all occur."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str = Field("", max_length=200)
    dimension: str = Field("", max_length=100)
    page: int = Field(1, ge=1, le=1_000_000)

    @property
    def words(self) -> list[str]:
        return self.text.lower().split()

    @property
    def first_row(self) -> int:
        return (self.page - 1) * PAGE_ROWS


class PairFilter(Filter):
    """Which preference pairs. `dimension`: those whose chosen clips are better in it."""

    feedback: Literal["", "text", "video"] = ""
    margin: float = Field(0.0, ge=0, le=1e6, allow_inf_nan=False)
    order: Literal["", "margin"] = ""


class QueryFilter(Filter):
    """Which held-out queries. `dimension`: gain and loss are those in it; `seed`: which clip of each prompt."""

    order: Literal["", "gain", "loss"] = ""
    seed: int = Field(1, ge=1, le=1000)


F = TypeVar("F", bound=Filter)


def read_filter(kind: type[F], parameters: Mapping[str, str]) -> F:
    """The filter of an address; what is empty is left at its default. Raises UnusableFilter."""
    try:
        return kind.model_validate({name: value for name, value in parameters.items() if value.strip()})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise UnusableFilter(f"{one_line(name, 40)}: {one_line(first['msg'], 200)}") from None


def contains_words(columns: str, words: list[str]) -> tuple[str, list[str]]:
    """An SQL condition that each word occurs in one of these columns (an SQL expression each), and its parameters."""
    if not words:
        return "true", []
    return f"list_bool_and([contains(lower(concat_ws(' ', {columns})), word) FOR word IN ?::VARCHAR[]])", words
