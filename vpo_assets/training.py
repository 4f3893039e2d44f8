"""Checkpoints as assets: trained once for each recipe, and found again ever after.

Belongs here: what all checkpoints have in common. Does not belong here: what they are trained on (sft.py, target.py,
alignment.py) or the training itself (ml/sft.py, ml/dpo.py, ml/diffusion_dpo.py).
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from dagster import (
    AssetExecutionContext,
    AssetsDefinition,
    DataVersion,
    MaterializeResult,
    MetadataValue,
    ResourceParam,
    asset,
)
from filelock import FileLock, Timeout

from ml.alignment_settings import AlignmentSettings
from ml.fine_tuning import TrainingJob, TrainingSettings
from resources.backend_settings import ModelDtype
from resources.trainer import Method
from storage.checkpoints import BrokenCheckpoint, CheckpointManifest
from storage.content import data_version
from storage.recipe import JSON, Recipe, stamped
from storage.tables import CHECKPOINTS, Table
from storage.training_files import write_training_file
from vpo_assets.free_disk import stop_if_disk_is_full
from vpo_assets.metadata import picture
from vpo_assets.platform import Platform
from vpo_assets.provenance import check_training_at_the_door
from vpo_assets.report.pictures import curves
from vpo_assets.steps import own_columns
from vpo_assets.table_assets import GPU_POOL, OWNERS, SECONDS_BETWEEN_LINES, SetOptions

Stage: TypeAlias = Literal["sft", "dpo", "aligned"]
ALIGNED: Literal["aligned"] = "aligned"
"""Of a video model's transformer; the other stages are of prompt optimizers."""

_PREFERENCES = ("loss", "rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected")
CURVES = {"sft": ("loss", "mean_token_accuracy", "learning_rate"), "dpo": _PREFERENCES, ALIGNED: _PREFERENCES}
METHODS: Mapping[Stage, Method] = {"sft": "sft", "dpo": "dpo", ALIGNED: "diffusion_dpo"}

SECONDS_BETWEEN_LOOKS = 60.0
TRAINING_FILE = "training_file.json"
"""In the work folder of a training: what it is trained on, so that retention leaves it alone."""


class TrainingChanged(RuntimeError):
    """What a training starts from changed while it was being prepared; says what to do."""


class NothingToLearn(RuntimeError):
    """The table that a checkpoint is trained on is empty; says which."""


class NotTrained(RuntimeError):
    """A checkpoint that is asked for does not exist yet; says which asset makes it."""


def _no_parts(_: Platform) -> Mapping[str, JSON]:
    return {}


def _no_fields(*_: object) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Training:
    """How one checkpoint comes about: from which base, on which table, with which settings.

    `parts` are more of its recipe; `job_fields` are more of its job, from the training file and the folder of states.
    """

    stage: Stage
    target: str | None
    data: Table
    base: Callable[[Platform], str]  # a folder or hub name to load
    base_name: Callable[[Platform], str]  # a name that changes with the weights
    settings: Callable[[Platform], TrainingSettings | AlignmentSettings]
    code_version: str = "1"
    dtype: Callable[[Platform], ModelDtype] = lambda platform: platform.profile.trained_model.dtype
    parts: Callable[[Platform], Mapping[str, JSON]] = _no_parts
    job_fields: Callable[[Platform, Path, Path], Mapping[str, Any]] = _no_fields

    def seeded_settings(self, platform: Platform) -> TrainingSettings | AlignmentSettings:
        """The settings, with the profile's seed where they name none."""
        settings = self.settings(platform)
        return settings if settings.seed is not None else settings.model_copy(update={"seed": platform.profile.seed})

    @property
    def asset_name(self) -> str:
        """`sft_checkpoint`, `shapes/dpo_checkpoint`, `shapes_aligned/video_model`."""
        name = "video_model" if self.stage == ALIGNED else f"{self.stage}_checkpoint"
        return f"{self.target}/{name}" if self.target else name

    def recipe(self, platform: Platform, snapshot: int | None = None) -> Recipe:
        """Everything that decides the weights: base, data (now or as of a snapshot), settings, code."""
        settings = self.seeded_settings(platform)
        parts: dict[str, JSON] = {
            "code": self.code_version,
            "stage": self.stage,
            "base": self.base_name(platform),
            "data": data_version(platform.lake, self.data, snapshot),
            "settings": settings.model_dump(mode="json", exclude={"save_every", "micro_batch_size", "pairs"}),
            "dtype": self.dtype(platform),
            **self.parts(platform),
        }
        return Recipe(parts)

    def checkpoint_id(self, platform: Platform) -> str:
        """The id of the checkpoint that the present data and settings make, trained or not."""
        return self.id_of(self.recipe(platform))

    def id_of(self, recipe: Recipe) -> str:
        """The id of the checkpoint that a recipe makes."""
        return f"{self.stage}-{recipe.id[:16]}"

    def trained(self, platform: Platform) -> str:
        """The same id, if it is trained. Raises NotTrained."""
        checkpoint_id = self.checkpoint_id(platform)
        if not platform.checkpoints.exists(checkpoint_id):
            raise NotTrained(
                f"the checkpoint {checkpoint_id} that the present data and settings ask for is not trained yet: "
                f"materialize {self.asset_name}"
            )
        return checkpoint_id


def train(
    platform: Platform,
    training: Training,
    snapshot: int,
    recipe: Recipe,
    on_progress: Callable[[dict[str, float]], None],
    say: Callable[[str], None],
) -> tuple[CheckpointManifest, bool]:
    """Train the checkpoint of a recipe on the data of a snapshot, resuming an interrupted run; a whole one that is
    there is left alone. Where another process is training it, waits for it to end, and takes over if it fails.

    The manifest, and whether it was trained now.
    """
    checkpoint_id = training.id_of(recipe)
    work = platform.home / "training" / checkpoint_id
    with alone(work, lambda holder: say(f"{checkpoint_id}: {holder} is training it; waiting for it to end")):
        reused = _is_whole(platform, checkpoint_id)
        if not reused:
            _train(platform, training, snapshot, recipe, work, on_progress)
        _, complete = platform.checkpoints.load(checkpoint_id)
        _record(platform, complete)
        (work / TRAINING_FILE).unlink(missing_ok=True)  # from here on the manifest says it
        forget_states(work / "states")
    return complete, not reused


def _train(
    platform: Platform,
    training: Training,
    snapshot: int,
    recipe: Recipe,
    work: Path,
    on_progress: Callable[[dict[str, float]], None],
) -> None:
    settings = training.seeded_settings(platform)
    checkpoint_id = training.id_of(recipe)
    data = work / "data.parquet"
    training_file = write_training_file(platform.lake, training.data, snapshot, data)
    if training_file.rows == 0:
        raise NothingToLearn(f"{training.data.label} has no rows, so {training.asset_name} has nothing to learn from")
    (work / TRAINING_FILE).write_text(training_file.model_dump_json())
    path = training.base(platform)
    if training.recipe(platform, snapshot).id != recipe.id:
        raise TrainingChanged(f"the base of {checkpoint_id} changed while its training was prepared: run it again")

    def fill(folder: Path) -> Mapping[str, Any]:
        fields: dict[str, Any] = {
            "sft" if training.stage == "sft" else "alignment" if training.stage == ALIGNED else "dpo": settings,
            "revision": platform.profile.trained_model.revision if training.stage == "sft" else None,
            **training.job_fields(platform, data, work / "states"),
        }
        job = TrainingJob(
            base_model=path,
            dtype=training.dtype(platform),
            data=data,
            work=work / "states",
            output=folder,
            **fields,
        )
        platform.trainer.train(METHODS[training.stage], job, on_progress)
        report = json.loads((folder / "training.json").read_text())
        return {key: value for key, value in report.items() if key != "curve"} | _last_figures(report["curve"])

    manifest = CheckpointManifest(
        id=checkpoint_id,
        stage=training.stage,
        target=training.target,
        base=training.base_name(platform),
        recipe=dict(recipe.parts),
        inputs={training.data.label: snapshot},
        training_file=training_file,
    )
    platform.checkpoints.commit(checkpoint_id, manifest, fill)


@contextmanager
def alone(work: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold a training's work folder for this process; the system frees it when the process ends, however it does.

    `waiting` is told by whom it is held, at once and then every minute.
    """
    work.mkdir(parents=True, exist_ok=True)
    holder = work / "holder"
    lock = FileLock(work / "lock")
    patience = 0.0
    while True:
        try:
            lock.acquire(timeout=patience)
            break
        except Timeout:
            waiting(holder.read_text()[:100] if holder.exists() else "another process")
            patience = SECONDS_BETWEEN_LOOKS
    try:
        holder.write_text(f"process {os.getpid()}")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


@contextmanager
def nobody_else(work: Path) -> Iterator[bool]:
    """Whether no process is training in the work folder, nor begins to while this is held."""
    if not work.is_dir():
        yield True
        return
    lock = FileLock(work / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def checkpoint_asset(training: Training, *, description: str, deps: list[str]) -> AssetsDefinition:
    """The asset of one checkpoint."""

    @asset(
        name=training.asset_name.rpartition("/")[2],
        key_prefix=[training.target] if training.target else [],
        deps=[dep.split("/") for dep in deps],
        description=description,
        group_name=training.target or "trunk",
        kinds={"pytorch", "diffusers" if training.stage == ALIGNED else "huggingface"},
        owners=OWNERS,
        code_version=training.code_version,
        pool=GPU_POOL,
    )
    def materialize(
        context: AssetExecutionContext, config: SetOptions, platform: ResourceParam[Platform]
    ) -> MaterializeResult[Any]:
        base = training.base_name(platform)
        check_training_at_the_door(
            context, platform, base if training.stage == "dpo" else None, accept=config.accept_stale_inputs
        )
        stop_if_disk_is_full(platform, training.asset_name)
        snapshot = platform.lake.snapshot()  # first: the id, the training file and the manifest speak of one moment
        recipe = training.recipe(platform, snapshot)
        checkpoint_id = training.id_of(recipe)
        started = time.monotonic()
        show = _progress_lines(context, checkpoint_id)
        manifest, trained_now = train(platform, training, snapshot, recipe, show, context.log.info)
        context.log.info(f"{checkpoint_id}: {'trained' if trained_now else 'already trained'}")
        path = platform.checkpoints.path(checkpoint_id)
        curve = json.loads((path / "training.json").read_text())["curve"]
        metadata: dict[str, Any] = {
            "checkpoint": checkpoint_id,
            "dagster/uri": str(path),
            "trained_now": trained_now,
            "seconds": round(time.monotonic() - started, 1),
            "base": manifest.base,
            "inputs": MetadataValue.json(manifest.inputs),
            "recipe": MetadataValue.json(manifest.recipe),
            "metrics": MetadataValue.json(manifest.metrics),
            "curves": picture(curves(_series(training.stage, curve), f"{checkpoint_id}", "step")),
        }
        return MaterializeResult(metadata=metadata, data_version=DataVersion(checkpoint_id))

    return materialize


def _is_whole(platform: Platform, checkpoint_id: str) -> bool:
    try:
        platform.checkpoints.load(checkpoint_id)
    except BrokenCheckpoint:
        return False
    return True


def forget_states(work: Path, *, dry_run: bool = False) -> int:
    """Free what an interrupted training would have resumed from (12 bytes a parameter and more); its log stays.

    How many folders."""
    folders = [folder for name in ("checkpoint-*", "examples") for folder in work.rglob(name)]
    for folder in [] if dry_run else folders:
        shutil.rmtree(folder, ignore_errors=True)
    return len(folders)


def _record(platform: Platform, manifest: CheckpointManifest) -> None:
    """The checkpoint's row in the lake. Writing the same row again changes nothing."""
    row = {
        "checkpoint_id": manifest.id,
        "stage": manifest.stage,
        "target": manifest.target,
        "path": manifest.id,
        "base": manifest.base,
        "metrics": json.dumps(manifest.metrics),
        "settings": json.dumps(manifest.recipe.get("settings")),
        "snapshots": json.dumps(manifest.inputs),
    }
    known = platform.lake.query(
        f"SELECT 1 AS one FROM {CHECKPOINTS.qualified} WHERE checkpoint_id = ?",
        [manifest.id],
    )
    if known.num_rows:
        return
    rows = own_columns(CHECKPOINTS, [row])
    rows = rows.append_column("input_id", rows["checkpoint_id"])
    recipe = Recipe(manifest.recipe)
    with platform.lake.write({"asset": CHECKPOINTS.label, "text": manifest.id}) as transaction:
        transaction.upsert(CHECKPOINTS, stamped(rows, recipe.id, "training"))


def _series(stage: str, curve: list[dict[str, float]]) -> dict[str, list[tuple[float, float]]]:
    series = {
        name: [(float(i + 1), entry[name]) for i, entry in enumerate(curve) if name in entry] for name in CURVES[stage]
    }
    return {name: points for name, points in series.items() if points}


def _last_figures(curve: list[dict[str, float]]) -> dict[str, float]:
    """Means over the last tenth of the logged steps: single steps are noisy."""
    logged = [entry for entry in curve if "loss" in entry]
    last = logged[-max(1, len(logged) // 10) :]
    names = {name for entry in last for name in entry if name in {n for c in CURVES.values() for n in c}}
    return {f"last/{name}": sum(entry.get(name, 0.0) for entry in last) / len(last) for name in sorted(names)}


def _progress_lines(context: AssetExecutionContext, checkpoint_id: str) -> Callable[[dict[str, float]], None]:
    last = 0.0
    started = time.monotonic()

    def show(figures: dict[str, float]) -> None:
        nonlocal last
        if "loss" not in figures:  # the trainer's closing summary
            return
        now = time.monotonic()
        step, steps = figures.get("step", 0), figures.get("steps", 0)
        if now - last < SECONDS_BETWEEN_LINES and step < steps:
            return
        last = now
        shown = ", ".join(
            f"{name} {figures[name]:.4g}"
            for name in ("loss", "rewards/margins", "rewards/accuracies")
            if name in figures
        )
        left = (now - started) / step * (steps - step) if step else 0.0
        context.log.info(f"{checkpoint_id}: step {step:.0f}/{steps:.0f}, {shown}, {left:.0f} s left")

    return show
