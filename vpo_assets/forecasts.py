"""What an asset's refresh will bring to those downstream of it.

Belongs here: arithmetic with expected rows. Does not belong here: what is known to be done now (storage/plan.py), or
putting the graph's plans together (planning.py).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Forecast:
    """A table after its refresh, as far as can be said before it.

    rows: in the table now. coming: rows that the refresh will write; None if nobody can tell. leaving: the share, 0 to
    1, of the present rows that will be replaced or removed.
    """

    rows: int
    coming: float | None
    leaving: float = 0.0

    @property
    def changes(self) -> bool:
        """Whether the table will not be what it is."""
        return self.coming is None or self.coming > 0 or self.leaving > 0

    @property
    def share_coming(self) -> float:
        """What comes as a share of what is there; of an empty table all, unless nothing comes. Unknown counts as 0."""
        coming = self.coming or 0.0
        return coming / self.rows if self.rows else float(coming > 0)


def expected_todo(known: int, inputs: int, source: Forecast, rows_a_source_row: float | None) -> float | None:
    """Rows that a step will have to make once its source is refreshed; None if that cannot be told.

    `known` are to be made by what the source holds now, of `inputs` in all. Those of them whose source row is about to
    go are not counted, and each row that is coming brings as many as the present ones did: `rows_a_source_row` says
    how many where there are none to go by.
    """
    if not source.changes:
        return known
    if source.coming is None:
        return None
    ratio = inputs / source.rows if source.rows and inputs else rows_a_source_row
    if ratio is None:
        return None
    return known * (1 - source.leaving) + source.coming * ratio


def limited(rows: float | None, limit: int | None) -> float | None:
    """At most `limit` rows."""
    return rows if limit is None or rows is None else min(rows, float(limit))


def after(rows: int, todo: float | None, leaving: int) -> Forecast:
    """The forecast of a table with so many rows, of which so many are replaced or removed."""
    return Forecast(rows, todo, min(1.0, leaving / rows) if rows else 0.0)
