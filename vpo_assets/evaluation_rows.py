"""One row of the table `evaluation`, whichever part of the evaluation it is of.

Belongs here: the form of a row. Does not belong here: what is measured (evaluation.py, safety_evaluation.py).
"""

from ml.metrics import Interval
from vpo_assets.steps import Row


def evaluation_row(
    section: str,
    method: str,
    metric: str,
    interval: Interval | None,
    *,
    value: float | None = None,
    against: str | None = None,
    n: int | None = None,
) -> Row:
    """A row without its ids. The value is the interval's mean where none is given, and `n` the interval's own."""
    return {
        "section": section,
        "method": method,
        "against": against,
        "metric": metric,
        "value": interval.mean if value is None and interval is not None else value,
        "low": interval.low if interval is not None else None,
        "high": interval.high if interval is not None else None,
        "n": interval.n if interval is not None else n,
    }
