"""A process that writes batches into a shared lake until it is done or killed: `writer.py ADDRESS DATA FOLDER ENDPOINT
NAME BATCHES ROWS`. It says a line for each batch that it knows to be committed."""

import sys
from pathlib import Path

import pyarrow as pa

from storage.lake import Lake
from storage.lake_place import SharedPlace
from storage.object_store import ObjectStoreAccess
from storage.tables import TEXT, Column, Table

WORDS = Table(
    "words",
    "word_id",
    (Column("word_id", TEXT, "Key.", nullable=False), Column("word", TEXT, "Who wrote it.")),
    "Words written by many.",
    lineage=False,
)


def rows(name: str, batch: int, count: int) -> pa.Table:
    """`shared-…` is a key that every writer writes: it must be there once."""
    keys = [f"{name}-{batch}-{i}" for i in range(count - 1)] + [f"shared-{batch}"]
    return pa.table({"word_id": keys, "word": [name] * count})


def main() -> None:
    address, data, folder, endpoint, name, batches, count = sys.argv[1:]
    access = ObjectStoreAccess(endpoint_url=endpoint or None, patience=60)
    lake = Lake(SharedPlace(address, data, Path(folder), access))
    lake.create(WORDS)
    print("ready", flush=True)
    for batch in range(int(batches)):
        new = rows(name, batch, int(count))
        lake.commit({"asset": name, "batch": batch}, lambda transaction, new=new: transaction.upsert(WORDS, new))
        print(batch, flush=True)


if __name__ == "__main__":
    main()
