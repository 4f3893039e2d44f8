"""Time travel: the file that a checkpoint was trained on, made again from the lake.

Belongs here: finding a checkpoint's snapshot, rebuilding its training file, comparing, and saying in words what came of
it. Does not belong here: writing such a file (storage/training_files.py) or retention (storage/maintenance.py).
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from storage.checkpoints import CheckpointManifest, TrainingFile
from storage.content import data_version
from storage.ids import sha256_of
from storage.lake import LakeError
from storage.tables import BRANCH, TRUNK, Table
from storage.training_files import write_training_file
from vpo_assets.platform import Platform


class Verdict(StrEnum):
    """What a replay came to. `matches`: the training file can be had again."""

    SAME_BYTES = "same bytes"
    SAME_ROWS = "same rows, other bytes"
    DIFFERENT = "different"
    UNKNOWN = "rebuilt, with nothing to compare it with"
    GONE = "cannot be rebuilt"

    @property
    def matches(self) -> bool:
        return self in (Verdict.SAME_BYTES, Verdict.SAME_ROWS)


class UnknownTable(ValueError):
    """A manifest names a table that the platform does not have."""


@dataclass(frozen=True)
class Replay:
    """One checkpoint's training file, made again: the verdict, why, and what was written (None if nothing was)."""

    checkpoint_id: str
    table: str
    snapshot: int
    verdict: Verdict
    explanation: str
    written: TrainingFile | None = None

    def __str__(self) -> str:
        return f"{self.checkpoint_id}: {self.table} at snapshot {self.snapshot}: {self.verdict}. {self.explanation}"


def replay(platform: Platform, checkpoint_id: str, out: Path | None = None) -> Replay:
    """Rebuild the checkpoint's training file as `out` (or for the comparison only) and compare it.

    Raises BrokenCheckpoint for a checkpoint that is not there or whose files are not, LakeError for a file that cannot
    be written.
    """
    _, manifest = platform.checkpoints.load(checkpoint_id, verify=False)
    if out is not None:
        return _replay(platform, manifest, out)
    with tempfile.TemporaryDirectory() as folder:
        return _replay(platform, manifest, Path(folder) / "data.parquet")


def with_ancestors(platform: Platform, checkpoint_id: str) -> Iterator[str]:
    """The checkpoint's id, and those of the checkpoints it was trained from, back to the first."""
    yield checkpoint_id
    for manifest in platform.checkpoints.lineage(checkpoint_id):
        if _is_checkpoint(platform, manifest.base):
            yield manifest.base


def _is_checkpoint(platform: Platform, name: str) -> bool:
    try:
        return platform.checkpoints.exists(name)
    except ValueError:  # the name of a model, such as org/model
        return False


def table_of(label: str) -> Table:
    """The table that a manifest calls by its label, `sft_dataset` or `shapes.preference_pairs`."""
    schema, _, name = label.rpartition(".")
    for table in BRANCH if schema else TRUNK:
        if table.name == name:
            return table.at(schema) if schema else table
    raise UnknownTable(f"there is no table {label[:100]!r} that a checkpoint could be trained on")


def _replay(platform: Platform, manifest: CheckpointManifest, out: Path) -> Replay:
    known = manifest.training_file
    label, snapshot = next(iter(manifest.inputs.items()))
    table = table_of(label)
    columns = known.columns if known else None
    if not platform.lake.has_snapshot(snapshot):
        return _without_snapshot(platform, manifest, table, snapshot, out)
    written = write_training_file(platform.lake, table, snapshot, out, columns)
    verdict, explanation = _compared(platform, manifest, table, snapshot, written)
    return Replay(manifest.id, label, snapshot, verdict, explanation, written)


def _compared(
    platform: Platform, manifest: CheckpointManifest, table: Table, snapshot: int | None, written: TrainingFile
) -> tuple[Verdict, str]:
    """`snapshot`: where the rows were read, None for the table as it is now."""
    known = manifest.training_file
    if known is not None and written.sha256 == known.sha256:
        return Verdict.SAME_BYTES, f"{written.rows:,} rows, {written.bytes:,} bytes, sha256 {written.sha256}"
    same_rows = _content(platform, table, snapshot) == manifest.recipe.get("data")
    if known is None:
        old = "the checkpoint is from before the hash of its training file was recorded"
        if same_rows:
            return Verdict.SAME_ROWS, f"{written.rows:,} rows with the content that its recipe names; {old}"
        return Verdict.UNKNOWN, f"{written.rows:,} rows; {old}, and their content is not the one its recipe names"
    if same_rows:
        why = (
            ""
            if written.writer == known.writer
            else f": it was written by {known.writer}, and here is {written.writer}"
        )
        return Verdict.SAME_ROWS, f"{written.rows:,} rows with the content that its recipe names{why}"
    return Verdict.DIFFERENT, (
        f"trained on {known.rows:,} rows, {known.bytes:,} bytes, sha256 {known.sha256[:12]}; the lake gives "
        f"{written.rows:,} rows, {written.bytes:,} bytes, sha256 {written.sha256[:12]}, and other content"
    )


def _content(platform: Platform, table: Table, snapshot: int | None) -> str | None:
    """The data version; None where the table had other columns then, so that there is no comparing."""
    try:
        return data_version(platform.lake, table, snapshot)
    except LakeError:
        return None


def _without_snapshot(
    platform: Platform, manifest: CheckpointManifest, table: Table, snapshot: int, out: Path
) -> Replay:
    """Retention took the snapshot: say so, and look whether the same rows are to be had elsewhere."""
    gone = "the snapshot is gone"
    try:
        platform.lake.require_snapshot(snapshot)
    except LakeError as error:
        gone = str(error)
    known = manifest.training_file
    if _content(platform, table, None) == manifest.recipe.get("data"):
        now = platform.lake.snapshot()
        written = write_training_file(platform.lake, table, now, out, known.columns if known else None)
        verdict, explanation = _compared(platform, manifest, table, None, written)
        note = f"{gone}, but the table as it is now (snapshot {now}) has the same rows: {explanation}"
        return Replay(manifest.id, table.label, snapshot, verdict, note, written)
    left = platform.home / "training" / manifest.id / "data.parquet"
    if known is not None and left.is_file() and sha256_of(left) == known.sha256:
        gone += f"; {left} is the very file that it was trained on"
    else:
        gone += f"; what is left is the manifest: {known.rows:,} rows, sha256 {known.sha256}" if known else ""
    return Replay(manifest.id, table.label, snapshot, Verdict.GONE, gone)
