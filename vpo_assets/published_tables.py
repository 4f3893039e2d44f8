"""What the paper publishes, as tables for a terminal in the layout of one's own.

Belongs here: laying out report/published.py. Does not belong here: any figure.
"""

from collections.abc import Iterator, Sequence

from rich.table import Table as Grid

from vpo_assets.evaluation_tables import TEXT_METRICS
from vpo_assets.report import published
from vpo_assets.report.tables import folding_grid


def published_grids() -> Iterator[Grid]:
    """Text level, video level, and what the paper says of an ablation, another video model, and people."""
    source = published.SOURCE
    yield _grid(
        f"Published, text level, % of {published.TEXT_LEVEL_QUERIES} queries' prompts ({source})",
        ("method", *TEXT_METRICS),
        [(name, *(f"{share:.1f}" for share in shares)) for name, shares in published.TEXT_LEVEL],
    )
    yield _grid(
        f"Published, video level ({source})",
        ("method", *published.VIDEO_LEVEL_METRICS),
        [(name, *(f"{value:.2f}" for value in values)) for name, values in published.VIDEO_LEVEL],
    )
    yield _grid(
        "Published, ablation on CogVideoX-5B",
        ("method", "overall"),
        [(name, f"{value:.2f}") for name, value in published.ABLATION],
    )
    yield _grid(
        "Published, another video model: Open-Sora 1.2",
        ("metric", "original", "VPO"),
        [
            (metric, "" if before is None else f"{before:.2f}", f"{after:.2f}")
            for metric, before, after in published.OTHER_VIDEO_MODEL
        ],
    )
    yield _grid(
        "Published, people's votes on CogVideoX-5B",
        ("VPO against", "win rate, points"),
        [(name, f"{points:+.1f}") for name, points in published.HUMAN_EVALUATION],
    )


def _grid(title: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Grid:
    grid = folding_grid(title, columns)
    for row in rows:
        grid.add_row(*row)
    return grid
