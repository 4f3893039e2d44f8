"""Where the time of a run went: inside models, and beside them.

    make demo && python benchmarks/overhead.py --home .vpo      # the run of that home that spent most time in models
    python benchmarks/overhead.py --home .vpo --run 618bd93d    # a run by the beginning of its id

Reads what Dagster recorded of a finished run, and changes nothing. Time in models is what assets wait for results of
language, video and reward models and the judge (loading them included), and what the trainer's process says that its
training took. Wall time is that from the making of the run to its end; the start of Python before it is recorded by
nobody. The aim is a wall time of at most 1.15 times the time in models.

    model      in models
    storage    committing batches of rows
    trainer    of checkpoints: writing training files, starting the trainer's process, loading its base, saving, hashing
    step       the rest of each asset's step: planning, rebuilding tables, pictures, previews, Dagster's records of it
    checks     steps of asset checks
    before     from the making of the run to its first step
    between    of the run, all that is inside no step
"""

import argparse
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagster import DagsterEventType, DagsterInstance, EventLogEntry, RunRecord

from vpo_assets.report.tables import print_tables

AIM = 1.15
PARTS = ("model", "storage", "trainer", "step")


@dataclass
class Step:
    """One step of a run; seconds. `asset` is empty for the step of a check."""

    asset: str = ""
    started: float = 0.0
    ended: float = 0.0
    model: float = 0.0
    storage: float = 0.0
    trainer: float = 0.0

    @property
    def wall(self) -> float:
        """From its start to its end."""
        return self.ended - self.started

    @property
    def step(self) -> float:
        """What is none of the others."""
        return self.wall - self.model - self.storage - self.trainer


def steps_of(entries: Iterable[EventLogEntry]) -> list[Step]:
    """The finished steps of a run, in the order of time."""
    steps: dict[str, Step] = {}
    for entry in entries:
        event = entry.dagster_event
        if event is None or event.step_key is None:
            continue
        step = steps.setdefault(event.step_key, Step())
        if event.event_type == DagsterEventType.STEP_START:
            step.started = entry.timestamp
        elif event.event_type in (DagsterEventType.STEP_SUCCESS, DagsterEventType.STEP_FAILURE):
            step.ended = entry.timestamp
        elif event.event_type == DagsterEventType.ASSET_MATERIALIZATION:
            materialization = event.step_materialization_data.materialization
            step.asset = materialization.asset_key.to_user_string()
            _spent(step, {name: value.value for name, value in materialization.metadata.items()})
    return sorted((step for step in steps.values() if step.ended), key=lambda step: step.started)


def _spent(step: Step, metadata: dict[str, Any]) -> None:
    """What an asset says of its time."""
    if "trained_now" in metadata:
        if metadata["trained_now"]:
            metrics = metadata["metrics"]
            step.model = float((json.loads(metrics) if isinstance(metrics, str) else metrics)["seconds"])
        step.trainer = max(0.0, float(metadata["seconds"]) - step.model)
    elif "planned" in metadata:  # made row by row, by models
        if "seconds_in_model" not in metadata:
            raise SystemExit("this run is of an earlier version, which did not record the time in models")
        step.model, step.storage = float(metadata["seconds_in_model"]), float(metadata["seconds_in_storage"])


def profile(record: RunRecord, steps: list[Step]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], float]:
    """A row for each asset, a row for each part of the whole, and wall time over time in models."""
    created, ended = record.create_timestamp.timestamp(), float(record.end_time or 0.0)
    wall, before = ended - created, steps[0].started - created
    made = [step for step in steps if step.asset]
    parts = {name: sum(getattr(step, name) for step in made) for name in PARTS}
    parts["checks"] = sum(step.wall for step in steps if not step.asset)
    parts["before"] = before
    parts["between"] = wall - sum(parts.values())
    assets = [
        {"asset": s.asset, "wall": s.wall, **{name: getattr(s, name) for name in PARTS}} for s in made if s.wall >= 0.05
    ]
    whole = [{"part": name, "seconds": value, "share": value / wall} for name, value in parts.items()]
    whole.append({"part": "wall", "seconds": wall, "share": 1.0})
    return assets, whole, wall / parts["model"] if parts["model"] else float("inf")


def chosen_run(instance: DagsterInstance, beginning: str | None) -> tuple[RunRecord, list[Step]]:
    """The finished run whose id begins so, else the one that spent most time in models."""
    finished = [
        (record, steps_of(instance.all_logs(record.dagster_run.run_id)))
        for record in instance.get_run_records()
        if record.end_time and record.dagster_run.run_id.startswith(beginning or "")
    ]
    finished = [(record, steps) for record, steps in finished if any(step.asset for step in steps)]
    if not finished:
        raise SystemExit(f"no finished run{f' whose id begins with {beginning}' if beginning else ''}")
    return max(finished, key=lambda run: sum(step.model for step in run[1]))


def main() -> None:
    """Read, add up, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("VPO_HOME", ".vpo")))
    parser.add_argument("--run", help="the beginning of the run's id")
    chosen = parser.parse_args()
    dagster_home = (chosen.home / "dagster").absolute()
    if not (dagster_home / "dagster.yaml").exists():
        raise SystemExit(f"{chosen.home} is no home of runs: there is no {dagster_home / 'dagster.yaml'}")
    os.environ["DAGSTER_HOME"] = str(dagster_home)
    with DagsterInstance.get() as instance:
        record, steps = chosen_run(instance, chosen.run)
    assets, whole, ratio = profile(record, steps)
    shown = [{name: v if isinstance(v, str) else f"{v:.1f}" for name, v in row.items()} for row in assets]
    print_tables(
        {
            f"Seconds of run {record.dagster_run.run_id[:8]} ({record.dagster_run.status.value})": shown,
            "The whole": [
                {"part": r["part"], "seconds": f"{r['seconds']:.1f}", "share": f"{r['share']:.1%}"} for r in whole
            ],
        }
    )
    print(f"wall time is {ratio:.3f} times the time in models; the aim is {AIM} at most")
    if ratio > AIM:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
