"""What a refresh costs against what changed: all rows, none, and 1% new ones, through the text tables.

    python benchmarks/refresh_cost.py                                  # 10,000, 100,000 and 1,000,000 queries
    python benchmarks/refresh_cost.py --sizes 10000 --picture ""       # a quick look, without the picture

Generated queries go the way of the trunk: a file is ingested into `raw_prompts`, `queries` is rebuilt as a whole from
it, and `drafts` is refreshed row by row from those, with functions that do next to nothing: what is left is the cost
of the engine. Each size runs in a process of its own, one after the other, so that its memory is its own:

    full       the file is ingested, every row is made
    nothing    the same once more, in a lake opened anew
    1% new     a second file brings one row for every hundred

Each is told with its share of the full one, and the peak of the process's memory (Linux: ru_maxrss) at its end. Which
part the time goes to (ingest, rebuild, refresh) is told besides. The curves become docs/images/refresh_cost.png.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.ingestion import ingest
from storage.lake import Lake, sql_type
from storage.refresh import BatchResult, Recipe, RefreshConfig, Report, rebuild, refresh
from storage.scope import Scope, read_narrowed
from storage.tables import DRAFTS, PARAMS, QUERIES, RAW_PROMPTS
from vpo_assets.report.pictures import BLUE, FAINT, INK, MUTED
from vpo_assets.report.tables import print_tables

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "images" / "refresh_cost.png"
BATCH = 50_000
ALLOWED = {"nothing": 0.01, "1% new": 0.02}
MEMORY_ALLOWED = 2048
CASES = ("full", "nothing", "1% new")

_COLORS = ("amber", "crimson", "teal", "violet", "lime", "scarlet", "golden", "mint")
_THINGS = ("hoop", "wedge", "ball", "box", "pyramid", "donut", "disc", "drum", "kite", "lantern")


def write_file(path: Path, first: int, count: int) -> None:
    """So many different queries of about sixty characters, as a Parquet file with a column text."""
    numbers = range(first, first + count)
    texts = [
        f"a {_COLORS[n % 8]} {_THINGS[n // 8 % 10]} drifts over field {n} while the camera slowly turns"
        for n in numbers
    ]
    pq.write_table(pa.table({"text": texts}), path)


def take_in(lake: Lake, files: Sequence[Path]) -> int:
    """What the asset raw_prompts does."""
    return sum(ingest(lake, file).new for file in files)


def rebuild_queries(lake: Lake) -> Report:
    """What the asset queries does, with a curation that keeps everything."""

    def rows(scope: Scope) -> pa.Table:
        sql = (
            f"SELECT query_id, text AS query, NULL::{sql_type(PARAMS)} AS params, 'sft' AS split, "
            f"'general' AS safety, 'en' AS language, true AS keep, NULL AS drop_reason FROM {RAW_PROMPTS.qualified}"
        )
        return read_narrowed(lake, sql, [RAW_PROMPTS], scope)

    recipe = Recipe({"by": "benchmark"})
    return rebuild(lake, QUERIES, rows, recipe, run_id="benchmark", reads=[RAW_PROMPTS], by_query=True)


def refresh_drafts(lake: Lake) -> Report:
    """What the asset drafts does, with a model that repeats the query, for all queries instead of one split."""
    inputs = (
        "SELECT content_id([query_id, query]) AS input_id, query_id, query "
        f"FROM (SELECT query_id, query FROM {QUERIES.qualified} WHERE keep)"
    )
    config = RefreshConfig(batch_size=BATCH)
    return refresh(lake, DRAFTS, inputs, Recipe({"by": "benchmark"}), draft, config, run_id="benchmark", by_query=True)


def draft(batch: pa.Table) -> BatchResult:
    """One row for each, without a loop."""
    nothing = pa.nulls(batch.num_rows, pa.int64())
    rows = {
        "prompt_id": batch["input_id"],
        "query_id": batch["query_id"],
        "prompt": pc.binary_join_element_wise(batch["query"], "in soft light", " "),
        "cut": pa.nulls(batch.num_rows, pa.bool_()),
        "prompt_tokens": nothing,
        "new_tokens": nothing,
        "input_id": batch["input_id"],
    }
    return BatchResult(pa.table(rows))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of wall time, and what came of it."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def measure(size: int, folder: Path) -> list[dict[str, Any]]:
    """The three cases one after the other in this process: seconds of each part, peak memory, load."""
    first, second = folder / "queries.parquet", folder / "more.parquet"
    write_file(first, 0, size)
    write_file(second, size, size // 100)
    found = []
    for case, files, new in (
        ("full", [first], size),
        ("nothing", [first], 0),
        ("1% new", [first, second], size // 100),
    ):
        with Lake(folder / "lake") as lake:
            taken, added = timed(lambda files=files, lake=lake: take_in(lake, files))
            rebuilt, queries = timed(lambda lake=lake: rebuild_queries(lake))
            refreshed, drafts = timed(lambda lake=lake: refresh_drafts(lake))
        assert added == queries.new == drafts.new == new, (case, added, queries, drafts)
        found.append(
            {
                "queries": size,
                "case": case,
                "seconds": taken + rebuilt + refreshed,
                "ingest": taken,
                "rebuild": rebuilt,
                "refresh": refreshed,
                "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "load": os.getloadavg()[0],
            }
        )
    return found


def measured_apart(size: int, folder: str | None) -> list[dict[str, Any]]:
    """The same in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="refresh-cost-", dir=folder) as work:
        command = [sys.executable, "-m", "benchmarks.refresh_cost", "--one", str(size), "--folder", work]
        answer = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    rows: list[dict[str, Any]] = json.loads(answer.stdout.splitlines()[-1])
    return rows


def shown(rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The figures as people read them, with each part's share of the full one."""
    full = {row["queries"]: row for row in rows if row["case"] == "full"}
    lines = []
    for row in rows:
        whole = full[row["queries"]]
        parts = {
            name: f"{row[name]:.2f}" + ("" if row is whole else f" ({row[name] / whole[name]:.1%})")
            for name in ("seconds", "ingest", "rebuild", "refresh")
        }
        memory = {"peak MiB": f"{row['peak MiB']:.0f}", "load": f"{row['load']:.1f}"}
        lines.append({"queries": f"{row['queries']:,}", "case": row["case"], **parts, **memory})
    return lines


def missed(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the largest size does not keep of what is promised."""
    largest = [row for row in rows if row["queries"] == max(row["queries"] for row in rows)]
    whole = largest[0]["seconds"]
    said = [
        f"{row['case']} takes {row['seconds'] / whole:.1%} of full, more than {ALLOWED[row['case']]:.0%}"
        for row in largest
        if row["case"] in ALLOWED and row["seconds"] > ALLOWED[row["case"]] * whole
    ]
    peak = max(row["peak MiB"] for row in largest)
    return [*said, f"{peak:.0f} MiB of memory, more than {MEMORY_ALLOWED}"] if peak > MEMORY_ALLOWED else said


def draw(rows: Sequence[dict[str, Any]]) -> bytes:
    """Seconds against queries, both on logarithmic scales: a line a case, and one of memory beside them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    for case, color in zip(CASES, (INK, MUTED, BLUE), strict=True):
        points = [row for row in rows if row["case"] == case]
        sizes, seconds = [row["queries"] for row in points], [row["seconds"] for row in points]
        time_axes.plot(sizes, seconds, color=color, marker="o", markersize=4, label=case)
        time_axes.annotate(
            f"{seconds[-1]:.3g} s", (sizes[-1], seconds[-1]), (4, 4), textcoords="offset points", color=color
        )
    peaks = [row for row in rows if row["case"] == "1% new"]
    memory_axes.plot(
        [r["queries"] for r in peaks], [r["peak MiB"] for r in peaks], color=BLUE, marker="o", markersize=4
    )
    memory_axes.axhline(MEMORY_ALLOWED, color=MUTED, linestyle="--", linewidth=1)
    memory_axes.set_ylim(0, MEMORY_ALLOWED * 1.1)
    time_axes.set_yscale("log")
    for axes, title in ((time_axes, "seconds of a refresh"), (memory_axes, "peak memory, MiB")):
        axes.set_xscale("log")
        axes.set_xlabel("queries", color=MUTED)
        axes.set_title(title, fontsize=11, color=INK, loc="left")
        axes.grid(color=FAINT, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=MUTED, labelsize=9)
    time_axes.legend(frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--picture", default=str(PICTURE), help="where the curves go; empty for nowhere")
    parser.add_argument("--folder", help="where the lakes are made; 2 GB for a million queries")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.one, Path(chosen.folder))))
        return
    rows = [row for size in sorted(chosen.sizes) for row in measured_apart(size, chosen.folder)]
    print_tables({f"A refresh against its change, {os.cpu_count()} CPUs": shown(rows)})
    if chosen.picture:
        Path(chosen.picture).write_bytes(draw(rows))
    if problems := missed(rows):
        raise SystemExit("; ".join(problems))


if __name__ == "__main__":
    main()
