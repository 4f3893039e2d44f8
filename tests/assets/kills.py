"""Killing runs at random moments, and what must hold afterwards.

Belongs here: the campaign (a home, runs of `vpo materialize` that are killed until one gets to its end) and the
inspection of what they leave. Does not belong here: what runs in the processes (killed_run.py).
"""

import contextlib
import hashlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from storage.content import data_version
from storage.lake import Lake
from storage.tables import BRANCH, CHECKPOINTS, EVAL_VIDEOS, FAILURES, TRUNK, VIDEOS, Table, quoted
from storage.videos import VideoStore
from tests.assets.conftest import World, queries_of, write_queries
from tests.assets.killed_run import ATTEMPT, DELAY, LOG, TINY_MODEL
from tests.tiny_model import save_tiny_model

ROOT = Path(__file__).parents[2]
TARGET = "shapes"
TABLES = (*TRUNK, *(table.at(TARGET) for table in BRANCH))
MARK = "KILLED_RUN_OF"
TEXT_BATCH, VIDEO_BATCH = 16, 8
TRAINERS = ("ml.sft", "ml.dpo")
Rows = dict[str, set[tuple[str, ...]]]


@dataclass
class Tally:
    """What happened: kills by where they fell, and everything that should not be."""

    kills: Counter[str] = field(default_factory=Counter)
    repeated: list[int] = field(default_factory=list)
    """Rows that each kill made work of twice."""
    fell_in: Counter[str] = field(default_factory=Counter)
    """The asset that was being made."""
    ended_before: int = 0
    problems: list[str] = field(default_factory=list)
    removed_files: int = 0
    unfinished_checkpoints: int = 0

    def add(self, other: "Tally") -> None:
        self.kills += other.kills
        self.fell_in += other.fell_in
        self.repeated += other.repeated
        self.ended_before += other.ended_before
        self.problems += other.problems
        self.removed_files += other.removed_files
        self.unfinished_checkpoints += other.unfinished_checkpoints


class Stage:
    """The process that forks runs; see killed_run.py."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("VPO_", "DAGSTER_"))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.assets.killed_run"],
            cwd=ROOT,
            env={**environment, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200", "TQDM_DISABLE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self._line() == "ready"

    def start(self, arguments: list[str], environment: dict[str, str], output: Path) -> int:
        """A run's process id."""
        assert self._process.stdin is not None
        order = {"arguments": arguments, "environment": environment, "output": str(output)}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        return int(self._line())

    def ends_within(self, seconds: float) -> bool:
        """Whether the run ends in this time."""
        return bool(select.select([self._process.stdout], [], [], seconds)[0])

    def status(self) -> int:
        """The run's exit status, negative for a signal; waits for its end."""
        return int(self._line())

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            letter = self._process.stdout.read(1)
            assert letter, "the stage has ended"
            line += letter
        return line.decode().strip()


@contextlib.contextmanager
def a_stage() -> Iterator[Stage]:
    stage = Stage()
    try:
        yield stage
    finally:
        stage.close()


class Killed:
    """A home whose runs are killed."""

    def __init__(self, stage: Stage, home: Path, *, queries: int = 32, delay: float = 0.002, trains: bool = False):
        home.mkdir(parents=True)
        self.home, self.trains, self._stage = home, trains, stage
        self.data = home / "data"
        self.output, self.log = home / "output.txt", home / "rows.jsonl"
        # Homes beside each other read one file: its name is a part of what the lake knows.
        file = write_queries(home.parent / "queries.jsonl", queries_of(queries))
        short = {"epochs": 2, "lora": None, "save_every": 2, "max_length": 128}
        changes: dict[str, Any] = {f"sft__{name}": value for name, value in short.items()}
        changes |= {f"targets__{TARGET}__dpo__{name}": value for name, value in short.items()}
        changes |= {
            "queries__files": [str(file)],
            "refresh__text_batch": TEXT_BATCH,
            "refresh__video_batch": VIDEO_BATCH,
        }
        World(home, **changes)
        self.environment = {
            "VPO_PROFILE": str(home / "profile.yaml"),
            LOG: str(self.log),
            DELAY: str(delay),
            MARK: str(home),
        }
        if trains:
            self.environment[TINY_MODEL] = str(save_tiny_model(home / "tiny"))
        self.attempts = 0
        self.pid = 0
        self.order: list[str] = []
        """Assets in the order in which a run makes them, as far as it is known."""

    def start(self, *assets: str) -> None:
        """Materialize these assets, all for none."""
        self.attempts += 1
        environment = {**self.environment, ATTEMPT: str(self.attempts)}
        self.output.write_text("")
        self.pid = self._stage.start(["materialize", *assets], environment, self.output)

    def finish(self) -> float:
        """One run to its end; seconds."""
        started = time.monotonic()
        self.start()
        status = self._stage.status()
        assert status == 0, (status, self.output.read_text()[-3000:])
        self.order = [asset for asset, what in self._said() if what == "started"]
        return time.monotonic() - started

    def run_and_kill(self, after: float, tally: Tally, rng: random.Random, assets: list[str]) -> bool:
        """Kill a run of these assets after so many seconds, the driver or its trainer; False if it had ended."""
        self.start(*assets)
        if self._stage.ends_within(after):
            assert self._stage.status() == 0, self.output.read_text()[-3000:]
            tally.ended_before += 1
            return False
        asset, trainer = self._asset(), self._trainer()
        hits_trainer = trainer is not None and rng.random() < 0.5
        with contextlib.suppress(ProcessLookupError):
            if trainer is not None and hits_trainer:
                os.killpg(trainer, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)
        status = self._stage.status()
        if status == 0:  # it ended by itself just before
            tally.ended_before += 1
            return False
        assert status == (1 if hits_trainer else -signal.SIGKILL), self.output.read_text()[-3000:]
        driver = "driver while it trains" if trainer else "driver"
        tally.kills["trainer's process group" if hits_trainer else driver] += 1
        tally.fell_in[asset] += 1
        return True

    def _trainer(self) -> int | None:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.pid).children():
                if any(module in child.cmdline() for module in TRAINERS):
                    return child.pid
        return None

    def _asset(self) -> str:
        """What the run says that it is making."""
        said = self._said()
        if not said:
            return "before the first asset"
        return said[-1][0] if said[-1][1] == "started" else f"after {said[-1][0]}"

    def left(self, order: list[str]) -> list[str]:
        """The assets of this order that the last run did not come to the end of; all of them if it came nowhere."""
        said = self._said()
        return order[order.index(said[-1][0]) :] if said else order

    def _said(self) -> list[tuple[str, str]]:
        """(asset, started or done), as the run has printed it."""
        lines = [line.split() for line in self.output.read_text().splitlines()]
        return [(words[1], words[2]) for words in lines if len(words) > 2 and words[2] in ("started", "done")]

    def orphans(self, tally: Tally, patience: float = 5.0) -> None:
        """End and note the processes of this home that are still there after a while."""
        deadline = time.monotonic() + patience
        while (found := self._ours()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in found:
            with contextlib.suppress(psutil.Error):
                command = process.cmdline()
                process.kill()
                tally.problems.append(f"after kill {tally.kills.total()}: still running: {' '.join(command)}")

    def _ours(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == str(self.home) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def worked_on(self) -> Counter[tuple[str, ...]]:
        """How often each row was worked on, by all runs together."""
        return Counter(tuple(entry[1:]) for entry in self._entries())

    def lost_work(self, attempt: int, again: set[tuple[str, ...]]) -> int:
        """How many of the rows that were worked on again this run and a later one had worked on."""
        entries = [(int(entry[0]), tuple(entry[1:])) for entry in self._entries()]
        here = {row for by, row in entries if by == attempt} & again
        return len(here & {row for by, row in entries if by > attempt})

    def _entries(self) -> list[list[str]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [json.loads(line) for line in lines]

    def lake(self) -> Lake | None:
        return Lake(self.data / "lake") if (self.data / "lake" / "lake.json").exists() else None

    def rows(self, problems: list[str]) -> Rows:
        """(key, input_id, recipe) of every row, and what is wrong with them."""
        found: Rows = {}
        lake = self.lake()
        if lake is None:
            return found
        with lake:
            for table in TABLES:
                if lake.exists(table):
                    found[table.label] = _rows_of(lake, table, problems)
            problems += self._files_missing(lake)
        return found

    def _files_missing(self, lake: Lake) -> list[str]:
        videos = VideoStore(self.data / "videos")
        return [
            f"{row['video_id']} has no whole file"
            for table in (VIDEOS.at(TARGET), EVAL_VIDEOS.at(TARGET))
            if lake.exists(table)
            for row in lake.read(table, columns=["video_id", "uri", "bytes", "sha256"]).to_pylist()
            if not videos.is_intact(row["uri"], row["bytes"], row["sha256"])
        ]

    def results(self) -> dict[str, str]:
        """The content of every table, and of every training file, as hashes."""
        lake = self.lake()
        assert lake is not None
        with lake:
            found = {table.label: data_version(lake, table) for table in TABLES if table != CHECKPOINTS}
            checkpoints = lake.read(CHECKPOINTS)["checkpoint_id"].to_pylist()
            failures = lake.count(FAILURES)
        found["checkpoints"] = " ".join(sorted(checkpoints))
        found["failures"] = str(failures)
        for checkpoint in checkpoints:
            data = self.data / "training" / checkpoint / "data.parquet"
            found[f"training file of {checkpoint}"] = hashlib.sha256(data.read_bytes()).hexdigest()
        return found

    def tidy(self, tally: Tally) -> None:
        """Maintenance of the stores, and what it should leave: a file for each row and a row for each file."""
        lake = self.lake()
        assert lake is not None
        store = VideoStore(self.data / "videos")
        with lake:
            tables = (VIDEOS.at(TARGET), EVAL_VIDEOS.at(TARGET))
            uris = {uri for table in tables for uri in lake.read(table, columns=["uri"])["uri"].to_pylist()}
        tally.removed_files += store.delete_unreferenced(uris, older_than_seconds=0)
        files = {file.relative_to(store.root).as_posix() for file in store.root.rglob("*") if file.is_file()}
        if files != uris:
            tally.problems.append(f"files without a row: {files - uris}, rows without a file: {uris - files}")
        tally.unfinished_checkpoints += len(list((self.data / "checkpoints").glob(".unfinished-*")))


def _rows_of(lake: Lake, table: Table, problems: list[str]) -> set[tuple[str, ...]]:
    names = [table.key, *(("input_id", "recipe") if table.lineage else ())]
    rows = lake.query(f"SELECT {', '.join(map(quoted, names))} FROM {table.qualified}").to_pylist()
    for what in ((table.key,), ("input_id", "recipe")) if table.lineage else ((table.key,),):
        twice = [key for key, times in Counter(tuple(r[name] for name in what) for r in rows).items() if times > 1]
        if twice:
            problems.append(f"{table.label}: {what} is there twice: {twice[:3]}")
    return {tuple(row[name] for name in names) for row in rows}


def campaign(
    stage: Stage, home: Path, reference: "Killed", kills: int, longest: float, rng: random.Random, **settings: Any
) -> Tally:
    """Kill runs over one home until one gets to its end or there were enough kills; then one runs to its end.

    Every third run is of all assets; the others resume with the asset that was being made, and so get further.
    """
    tally = Tally()
    killed = Killed(stage, home, trains=reference.trains, **settings)
    before: Rows = {}
    assets: list[str] = []
    while tally.kills.total() < kills:
        if not killed.run_and_kill(rng.uniform(0, longest), tally, rng, assets):
            break
        left = killed.left(assets or reference.order)
        assets = left if rng.random() < 2 / 3 else []
        killed.orphans(tally)
        now = killed.rows(tally.problems)
        for label, rows in before.items():
            if gone := rows - now.get(label, set()):
                tally.problems.append(f"after kill {tally.kills.total()}: {label} lost {len(gone)} committed rows")
        before = now
    killed.finish()
    for label, rows in before.items():
        if gone := rows - killed.rows(tally.problems)[label]:
            tally.problems.append(f"at the end: {label} lost {len(gone)} committed rows")
    _compare(killed, reference, tally)
    return tally


def _compare(killed: Killed, reference: Killed, tally: Tally) -> None:
    """The tables, the work and the files of the killed runs against those of the undisturbed one."""
    expected, found = reference.results(), killed.results()
    different = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
    tally.problems += [f"{name} is not what it should be" for name in different]
    worked = killed.worked_on()
    killed.finish()  # once more, with nothing to do
    if killed.worked_on() != worked:
        tally.problems.append("a run with nothing to do worked on rows")
    if missing := reference.worked_on() - worked:
        tally.problems.append(f"rows were never worked on: {sorted(missing)[:3]}")
    again = set(worked - reference.worked_on())
    tally.repeated += [killed.lost_work(attempt, again) for attempt in range(1, killed.attempts - 1)]
    most = max(TEXT_BATCH, VIDEO_BATCH)
    tally.problems += [f"a kill cost {rows} rows, more than a batch" for rows in tally.repeated if rows > most]
    killed.tidy(tally)


__all__ = ["Killed", "Stage", "Tally", "a_stage", "campaign"]
