"""Which queries a checkpoint has learned from, and whether they are still there.

Belongs here: following a checkpoint to its training rows and its ancestors. Does not belong here: the check that says
so (checks.py), and removing queries (prompts.py).
"""

from dataclasses import dataclass

import pyarrow as pa

from storage.checkpoints import CheckpointManifest
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
    return [_learned(platform, manifest) for manifest in platform.checkpoints.lineage(checkpoint_id)]


def _learned(platform: Platform, manifest: CheckpointManifest) -> Learned:
    learned = [pa.table({"query_id": pa.array([], pa.string())})]
    try:
        for label, snapshot in manifest.inputs.items():
            learned.append(platform.lake.read(table_of(label), version=snapshot, columns=["query_id"]))
    except UnknownTable as error:
        return Learned(manifest.id, unknown=str(error))
    except LakeError:
        return Learned(manifest.id, unknown="the lake no longer has the rows that it was trained on")
    (found,) = platform.lake.query(
        "SELECT count(DISTINCT l.query_id) AS queries, "
        "count(DISTINCT l.query_id) FILTER (there.query_id IS NULL) AS removed, "
        "coalesce(list_sort(list(DISTINCT l.query_id) FILTER (there.query_id IS NULL)), []) AS ids "
        f"FROM learned AS l LEFT JOIN {RAW_PROMPTS.qualified} AS there USING (query_id)",
        learned=pa.concat_tables(learned, promote_options="permissive"),
    ).to_pylist()
    return Learned(manifest.id, found["queries"], found["removed"], tuple(found["ids"][:IDS_SHOWN]))
