"""The file a checkpoint is trained on: rows of one table at one snapshot, always written as the same bytes.

Here: writing it, and telling what was written. Which table and snapshot, and whether they are still there, is for
whoever trains or replays.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from storage.checkpoints import TrainingFile
from storage.ids import sha256_of
from storage.lake import Lake, LakeError
from storage.tables import Table

ROWS_IN_GROUP = 65_536
WRITER = f"pyarrow {pa.__version__}"
"""What decides the bytes beside the rows: another release of it may write the same rows as other bytes."""


def write_training_file(
    lake: Lake, table: Table, snapshot: int, file: Path, columns: Sequence[str] | None = None
) -> TrainingFile:
    """Write the table's rows of a snapshot as Parquet: its own columns (or those named), in the order of its key.

    Nothing of when, where or by which run is in it: the same rows are the same bytes, as long as WRITER is the same.
    The file appears under its name when it is whole. Raises LakeError for a snapshot or column that is not there, and
    for a file that cannot be written.
    """
    import pyarrow.parquet as parquet

    own = tuple(columns) if columns is not None else tuple(column.name for column in table.columns)
    rows = lake.read(table, version=snapshot, columns=[*{*own, table.key}])
    rows = rows.sort_by(table.key).select(list(own)).combine_chunks()  # where chunks end shows in the pages
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.unfinished")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(
            rows,
            unfinished,
            row_group_size=ROWS_IN_GROUP,
            version="2.6",
            data_page_version="1.0",
            compression="zstd",
            compression_level=3,
            use_dictionary=True,
            write_statistics=True,
        )
        unfinished.replace(file)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise LakeError(f"cannot write {file}: {error.strerror or error}") from error
    return TrainingFile(
        table=table.label,
        snapshot=snapshot,
        columns=own,
        rows=rows.num_rows,
        bytes=file.stat().st_size,
        sha256=sha256_of(file),
        writer=WRITER,
    )
