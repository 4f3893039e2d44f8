"""What workers on Ray are worth: throughput against workers, and what kills cost.

    python -m benchmarks.ray_scaling waiting     # 1 to 64 workers that wait for something, as those of an endpoint do
    python -m benchmarks.ray_scaling computing   # 1 and 2 workers that compute
    python -m benchmarks.ray_scaling embedded    # prompts and videos of the embedded models: here, 1 and 2 workers
    python -m benchmarks.ray_scaling kills       # ten kills of workers and nodes in the middle of a refresh
    python -m benchmarks.ray_scaling picture     # docs/images/ray_scaling.png of what was measured last

Each mode but the last starts Ray on this machine, and keeps its figures in the folder that --figures names. Throughput
is measured between the moment when every worker has given its first result and the last moment at which there is work
for all; how long it took until then is told besides. `ideal` is what so many workers would do if one were not in
another's way: for waiting, batches of one second each; for computing, so many times what one worker did. `plain` is the
same work in as many processes without Ray, measured right after: what the machine had to give at the time.
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa

from resources.compute_settings import RayComputeSettings
from resources.ray_compute import RayMapper
from storage.lake import Lake
from storage.refresh import BatchResult, Mapper, Progress, Recipe, RefreshConfig, map_here, refresh
from tests.resources.ray_nodes import HEAD, two_nodes
from tests.storage.things import THINGS, inputs_of, rows_of
from vpo_assets.report.pictures import BLUE, FAINT, INK, MUTED
from vpo_assets.report.tables import print_tables

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "images" / "ray_scaling.png"
WORKERS = (1, 2, 4, 8, 16, 32, 64)
WAIT = 1.0  # seconds a batch
WINDOW = 15.0  # seconds of measurement
KILLS = 10
COLORS = (INK, "#d9772b", BLUE, "#3a8f5c")


@dataclass(frozen=True)
class Waiting:
    """Waits as for a server."""

    seconds: float = WAIT

    def __call__(self, batch: pa.Table) -> BatchResult:
        time.sleep(self.seconds)
        return _signed(batch)


@dataclass(frozen=True)
class Computing:
    """Hashes, on one core."""

    rounds: int = 400_000

    def __call__(self, batch: pa.Table) -> BatchResult:
        digest = b""
        for _ in range(self.rounds):
            digest = hashlib.sha256(digest).digest()
        return _signed(batch)


def _signed(batch: pa.Table) -> BatchResult:
    return BatchResult(batch.append_column("pid", pa.array([os.getpid()] * batch.num_rows)))


def steady_throughput(mapper: Mapper, function: Callable[[pa.Table], BatchResult], workers: int) -> dict[str, float]:
    """Batches a second while all workers work, and the seconds until they did."""
    started = time.monotonic()
    all_at_work: float | None = None

    def source() -> Iterator[pa.Table]:
        number = 0
        while all_at_work is None or time.monotonic() < all_at_work + WINDOW:
            number += 1
            yield pa.table({"input_id": [str(number)]})

    seen: set[int] = set()
    in_window = 0
    for _, result in mapper(function, source()):
        now = time.monotonic()
        if all_at_work is not None:
            in_window += now <= all_at_work + WINDOW
            continue
        seen.add(result.rows["pid"][0].as_py())
        if len(seen) == workers:
            all_at_work = now
    assert all_at_work is not None
    return {"batches/s": in_window / WINDOW, "seconds to start": all_at_work - started}


def waiting(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for workers in WORKERS:
        settings = RayComputeSettings(workers=workers, cpus_per_worker=0, local_cpus=2)
        measured = steady_throughput(RayMapper(settings, folder), Waiting(), workers)
        rows.append({"workers": workers, **measured, "of ideal": measured["batches/s"] * WAIT / workers, **_load()})
        print(rows[-1], flush=True)
    return rows


def computing(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for workers in (1, 2, 1, 2, 1, 2):
        settings = RayComputeSettings(workers=workers, local_cpus=2)
        measured = steady_throughput(RayMapper(settings, folder), Computing(), workers)
        plain = _plain_throughput(workers)
        one = rows[-1]["batches/s"] if workers == 2 else measured["batches/s"]
        shares = {"of ideal": measured["batches/s"] / workers / one, "of plain": measured["batches/s"] / plain}
        rows.append({"workers": workers, **measured, "plain batches/s": plain, **shares, **_load()})
        print(rows[-1], flush=True)
    return rows


def _plain_throughput(processes: int) -> float:
    """The same work in processes without Ray or a driver: what the machine gives beside whatever else it is doing."""
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        return sum(pool.map(_computed_in_window, range(processes))) / WINDOW


def _computed_in_window(_: int) -> int:
    ended, done = time.monotonic() + WINDOW, 0
    while time.monotonic() < ended:
        Computing()(pa.table({"input_id": ["plain"]}))
        done += 1
    return done


def embedded(folder: Path) -> list[dict[str, Any]]:
    """The embedded models on the bundled queries: whether the rows are those made here, and rows a second."""
    import torch

    from resources.settings import load_profile
    from vpo_assets.platform import BUNDLED_QUERIES, Platform, quiet_libraries

    quiet_libraries()
    torch.set_num_threads(1)  # as a worker has it
    platform = Platform(load_profile("local").model_copy(update={"home": folder}))
    texts = [json.loads(line)["text"] for line in BUNDLED_QUERIES.read_text().splitlines()]
    inputs = [
        {"input_id": f"{i:04}", "query_id": f"{i:04}", "prompt_id": f"{i:04}", "seed": i, "query": text, "prompt": text}
        for i, text in enumerate(texts)
    ]
    rows: list[dict[str, Any]] = []
    for stage, count, size in (("videos", 48, 4), ("prompts", 48, 4)):
        batches = [pa.Table.from_pylist(inputs[i : i + size]) for i in range(0, count, size)]
        here: list[Any] = []
        for workers in (0, 1, 2):
            settings = RayComputeSettings(workers=max(1, workers), local_cpus=2, batches_in_flight=1)
            mapper: Mapper = RayMapper(settings, folder) if workers else map_here
            found, seconds, started = _made(mapper, _embedded_work(stage, platform), batches, max(1, workers))
            platform.release()
            here = here or found
            same = sum(there == one for there, one in zip(found, here, strict=True))
            figures = {"rows": count, "rows/s": (count - size * max(1, workers)) / seconds, "seconds to start": started}
            rows.append({"stage": stage, "workers": workers or "here", **figures, "same rows": same, **_load()})
            print(rows[-1], flush=True)
    return rows


def _embedded_work(stage: str, platform: Any) -> Callable[[pa.Table], BatchResult]:
    from vpo_assets.filming import film
    from vpo_assets.sft import write_drafts
    from vpo_assets.steps import StepWork

    names = ("prompt_id", "prompt") if stage == "prompts" else ("video_id", "sha256")
    columns = pa.schema([(name, pa.string()) for name in ("input_id", *names)])
    return StepWork(platform, write_drafts if stage == "prompts" else lambda p, rows: film(p, "shapes", rows), columns)


def _made(
    mapper: Mapper, function: Callable[[pa.Table], BatchResult], batches: Sequence[pa.Table], workers: int
) -> tuple[list[Any], float, float]:
    """All rows by their input, seconds from when each worker had its first batch done, and seconds until then."""
    started = time.monotonic()
    arrived: list[float] = []
    found: list[Any] = []
    for _, result in mapper(function, batches):
        arrived.append(time.monotonic())
        found += result.rows.to_pylist()
    return sorted(found, key=lambda r: str(r["input_id"])), arrived[-1] - arrived[workers - 1], arrived[0] - started


@dataclass(frozen=True)
class Logged:
    """Makes things slowly, and writes down that it was called."""

    log: Path
    recipe: Recipe

    def __call__(self, batch: pa.Table) -> BatchResult:
        with self.log.open("a") as log:
            log.write(f"{os.getpid()}\n")
        time.sleep(0.5)
        return BatchResult(rows_of(batch["input_id"].to_pylist(), self.recipe))


def kills(folder: Path) -> list[dict[str, Any]]:
    """A refresh into a lake while workers and nodes are killed; what came of it against the same without kills."""
    recipe, log = Recipe({"model": "slow"}), folder / "log"
    inputs = inputs_of([f"word{i:05}" for i in range(3000)])
    with two_nodes() as nodes:
        settings = RayComputeSettings(address=nodes.address, node_address=HEAD, workers=3)
        killed, victim = 0, nodes.add()

        def kill(progress: Progress) -> None:
            nonlocal killed, victim
            if killed == KILLS or progress.done < 250 * (killed + 1):
                return
            killed += 1
            if killed % 3 == 0:
                nodes.kill(victim)
                victim = nodes.add()
            else:
                os.kill(int(log.read_text().splitlines()[-1]), signal.SIGKILL)
            print(f"kill {killed}, a {'node' if killed % 3 == 0 else 'worker'}, at {progress.done} rows", flush=True)

        started, lake = time.monotonic(), Lake(folder / "lake")
        report = refresh(
            lake, THINGS, inputs, recipe, Logged(log, recipe), RefreshConfig(batch_size=20),
            run_id="kills", mapper=RayMapper(settings, folder), progress=kill,
        )  # fmt: skip
        there = lake.read(THINGS, columns=["thing_id", "word"]).sort_by("thing_id").to_pylist()
        expected = rows_of(inputs["input_id"].to_pylist(), recipe).select(["thing_id", "word"]).sort_by("thing_id")
        figures: dict[str, Any] = {"kills": killed, "rows": len(there), "failed": report.failed}
        figures |= {"as without kills": there == expected.to_pylist(), "batches": 150}
        figures |= {"batches begun": len(log.read_text().splitlines()), "seconds": time.monotonic() - started}
        print(figures, flush=True)
    return [figures | _load()]


def _load() -> dict[str, float]:
    """How busy the machine was: the mean of the last minute."""
    return {"load": os.getloadavg()[0]}


def draw(waits: Sequence[dict[str, Any]], stages: Sequence[dict[str, Any]]) -> bytes:
    """Throughput against workers: of waiting work up to 64, and of the computing stages up to 2."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    wide, narrow = figure.subplots(1, 2)
    counts = [row["workers"] for row in waits]
    wide.plot(counts, [n / WAIT for n in counts], color=MUTED, linestyle="--", linewidth=1, label="linear")
    wide.plot(counts, [row["batches/s"] for row in waits], color=BLUE, marker="o", markersize=4, label="measured")
    wide.set_xscale("log", base=2)
    wide.set_yscale("log", base=2)
    wide.set_title("batches a second, one second each", fontsize=11, color=INK, loc="left")
    for stage, color in zip(dict.fromkeys(row["stage"] for row in stages), COLORS, strict=False):
        points = [row for row in stages if row["stage"] == stage and row["workers"] != "here"]
        one = points[0]["rows/s"]
        narrow.plot([p["workers"] for p in points], [p["rows/s"] / one for p in points], color=color, marker="o",
                    markersize=4, label=stage)  # fmt: skip
    narrow.plot([1, 2], [1, 2], color=MUTED, linestyle="--", linewidth=1, label="linear")
    narrow.set_xticks([1, 2])
    narrow.set_title("times the throughput of one worker, two cores", fontsize=11, color=INK, loc="left")
    for axes in (wide, narrow):
        axes.set_xlabel("workers", color=MUTED)
        axes.grid(color=FAINT, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=MUTED, labelsize=9)
        axes.legend(frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


MODES = {"waiting": waiting, "computing": computing, "embedded": embedded, "kills": kills}


def main() -> None:
    """Measure and keep, or draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("mode", choices=[*MODES, "picture"])
    parser.add_argument(
        "--figures", type=Path, default=ROOT / ".vpo" / "ray_scaling", help="folder of what was measured"
    )
    chosen = parser.parse_args()
    if chosen.mode == "picture":
        waits, computed, stages = (
            json.loads((chosen.figures / f"{mode}.json").read_text()) for mode in ("waiting", "computing", "embedded")
        )
        hashing = [
            {"stage": stage, "workers": n, "rows/s": median(r[key] for r in computed if r["workers"] == n)}
            for stage, key in (("hashing", "batches/s"), ("hashing, no Ray", "plain batches/s"))
            for n in (1, 2)
        ]
        PICTURE.write_bytes(draw(waits, [*hashing, *stages]))
        return
    # Ray's workers give way to everything else on the machine (nice 15); here they compete as plain processes do.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with tempfile.TemporaryDirectory(prefix="vpo-ray-scaling-") as folder:
        rows = MODES[chosen.mode](Path(folder))
    chosen.figures.mkdir(parents=True, exist_ok=True)
    (chosen.figures / f"{chosen.mode}.json").write_text(json.dumps(rows, indent=1))
    shown = [{k: f"{v:.2f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    print_tables({f"Ray, {chosen.mode}, {os.cpu_count()} CPUs": shown})


if __name__ == "__main__":
    main()
