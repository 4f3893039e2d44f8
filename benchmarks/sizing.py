"""How long so many queries take on so many workers: on paper, from the pace that a finished home has recorded.

    python benchmarks/sizing.py --home .vpo --queries 1000000 --workers 64
    python benchmarks/sizing.py --home .vpo --queries 1000000 --workers 64 --rows-per-hour videos=80 candidates=20000

For each table that is made row by row: rows for each query (as many as the home has for each query it kept), rows that
one worker makes in an hour (the last recorded refreshes of the table; `--rows-per-hour` puts another figure in their
place, say one measured on the GPUs that are to be bought), and from both the hours of one worker and of all.

It assumes that the share of queries that is kept, split and judged flawless stays what it was, that workers add up to
`--efficiency` of as many single ones (docs/cluster.md has measured shares), and that the pace was recorded with one
worker. Training is not in it: its time follows the examples and epochs, not the workers.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from storage.lake import Lake
from storage.plan import pace
from storage.tables import (
    CANDIDATE_CRITIQUES,
    CANDIDATES,
    DRAFT_CRITIQUES,
    DRAFTS,
    QUERIES,
    VIDEO_REWARDS,
    VIDEOS,
    Table,
)
from vpo_assets.report.tables import print_tables

SECONDS_PER_HOUR = 3600.0


def tables_of(targets: Sequence[str]) -> list[Table]:
    """What is made row by row on the way to the checkpoints, in order."""
    branch = (CANDIDATES, CANDIDATE_CRITIQUES, VIDEOS, VIDEO_REWARDS)
    return [DRAFTS, DRAFT_CRITIQUES, *(table.at(target) for target in targets for table in branch)]


def estimate(
    lake: Lake, table: Table, queries: int, workers: int, efficiency: float, given: Mapping[str, float]
) -> dict[str, str | float]:
    """One table's row of the sizing table, hours as numbers; a pace that nobody knows is an error."""
    kept = lake.query(f"SELECT count(*) AS n FROM {QUERIES.qualified}")["n"][0].as_py()
    if not kept:
        raise SystemExit("this home has no queries to learn the shares from")
    per_query = lake.count(table) / kept
    measured = pace(lake, table)
    per_hour = given.get(table.name, (measured or 0.0) * SECONDS_PER_HOUR)
    if not per_hour:
        raise SystemExit(f"nothing is recorded for {table.label}: give --rows-per-hour {table.name}=NUMBER")
    hours = queries * per_query / per_hour
    return {
        "table": table.label,
        "rows a query": round(per_query, 3),
        "rows": round(queries * per_query),
        "rows an hour, one worker": round(per_hour),
        "from": "given" if table.name in given else "recorded",
        "hours, one worker": hours,
        f"hours, {workers} workers": hours / (workers * efficiency),
    }


def _pair(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        rows = float(number)
    except ValueError:
        rows = 0.0
    if rows <= 0 or name not in {table.name for table in tables_of(["any"])}:
        raise argparse.ArgumentTypeError(f"{text!r} is not TABLE=ROWS, such as videos=80")
    return name, rows


def main() -> None:
    """Read the home, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--target", default="shapes")
    parser.add_argument("--queries", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--efficiency", type=float, default=0.95)
    parser.add_argument("--rows-per-hour", type=_pair, nargs="*", default=[], metavar="TABLE=ROWS")
    chosen = parser.parse_args()
    if not (chosen.home / "lake").is_dir():
        raise SystemExit(f"{chosen.home} is no home of the platform: it has no folder lake")
    with Lake(chosen.home / "lake") as lake:
        rows = [
            estimate(lake, table, chosen.queries, chosen.workers, chosen.efficiency, dict(chosen.rows_per_hour))
            for table in tables_of([chosen.target])
        ]
    names = [name for name in rows[0] if name.startswith("hours")]
    total = {name: sum(float(row[name]) for row in rows) for name in names}
    shown = [
        {name: f"{value:,.1f}" if name in names else str(value) for name, value in row.items()}
        for row in [*rows, {**dict.fromkeys(rows[0], ""), "table": "all", **total}]
    ]
    print_tables({f"{chosen.queries:,} queries, {chosen.workers} workers at {chosen.efficiency:.0%}": shown})


if __name__ == "__main__":
    main()
