"""Which queries a checkpoint has learned from, and whether they are still there.

Belongs here: following a checkpoint to its training rows and its ancestors. Does not belong here: the check that says
so (checks.py), and removing queries (prompts.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from storage.checkpoints import BrokenCheckpoint, CheckpointManifest
from storage.lake import LakeError
from storage.tables import RAW_PROMPTS
from vpo_assets.platform import Platform
from vpo_assets.replay import UnknownTable, table_of

IDS_SHOWN = 20


@dataclass(frozen=True)
class Learned:
    """What one checkpoint learned from: how many of its queries are there no more, some of their ids, and, if it cannot
    be told, why."""

    checkpoint_id: str
    queries: int = 0
    removed: int = 0
    removed_ids: tuple[str, ...] = ()
    unknown: str | None = None


def learned_from(platform: Platform, checkpoint_id: str) -> list[Learned]:
    """The checkpoint, and then those that it was trained from."""
    return [_learned(platform, manifest) for manifest in lineage(platform, checkpoint_id)]


def lineage(platform: Platform, checkpoint_id: str) -> Iterator[CheckpointManifest]:
    """The manifests of a checkpoint and its ancestors, as far as they are there."""
    seen: set[str] = set()
    while checkpoint_id not in seen:
        seen.add(checkpoint_id)
        try:
            if not platform.checkpoints.exists(checkpoint_id):
                return
            _, manifest = platform.checkpoints.load(checkpoint_id, verify=False)
        except (BrokenCheckpoint, ValueError):  # ValueError: the name of a model, which is no id
            return
        yield manifest
        checkpoint_id = manifest.base


def _learned(platform: Platform, manifest: CheckpointManifest) -> Learned:
    query_ids: set[str] = set()
    try:
        for label, snapshot in manifest.inputs.items():
            rows = platform.lake.read(table_of(label), version=snapshot, columns=["query_id"])
            query_ids |= set(rows["query_id"].to_pylist())
    except UnknownTable as error:
        return Learned(manifest.id, unknown=str(error))
    except LakeError:
        return Learned(manifest.id, unknown="the lake no longer has the rows that it was trained on")
    there = set(platform.lake.read(RAW_PROMPTS, columns=["query_id"])["query_id"].to_pylist())
    removed = sorted(query_ids - there)
    return Learned(manifest.id, len(query_ids), len(removed), tuple(removed[:IDS_SHOWN]))
