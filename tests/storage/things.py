"""A small table and the functions that fill it, shared by the storage tests and the programs they start."""

from __future__ import annotations

from collections.abc import Collection
from itertools import count

import pyarrow as pa

from storage.ids import content_id
from storage.refresh import BatchResult, Recipe
from storage.tables import TEXT, TEXTS, WHOLE, Column, Table

THINGS = Table(
    "things",
    "thing_id",
    (
        Column("thing_id", TEXT, "Key.", nullable=False),
        Column("word", TEXT, "What was made of the input."),
        Column("letters", TEXTS, "Its letters."),
        Column("took", WHOLE, "Differs every time.", measured=True),
    ),
    "Things made for tests.",
)
_numbers = count()


def new_table() -> Table:
    """A table that no other test has used, so that tests can share one lake."""
    return Table(f"things_{next(_numbers)}", THINGS.key, THINGS.columns, THINGS.description)


def inputs_of(words: Collection[str]) -> pa.Table:
    words = sorted(words)
    return pa.table({"input_id": pa.array(words, pa.string()), "word": pa.array(words, pa.string())})


class Maker:
    """A batch function that remembers what it was asked for and fails on bad words."""

    def __init__(self, recipe: Recipe, bad: Collection[str] = (), *, raises: bool = True) -> None:
        self.recipe = recipe
        self.bad = set(bad)
        self.raises = raises
        self.asked: list[str] = []

    def __call__(self, batch: pa.Table) -> BatchResult:
        from storage.refresh import Failure

        words = batch["input_id"].to_pylist()
        wrong = sorted(self.bad & set(words))
        if wrong and self.raises:
            raise ValueError(f"cannot make {wrong[0]}")
        good = [word for word in words if word not in self.bad]
        self.asked += words
        return BatchResult(rows_of(good, self.recipe), [Failure(word, "refused") for word in wrong])


def rows_of(words: Collection[str], recipe: Recipe) -> pa.Table:
    made = [f"{word} by {recipe.parts['model']}" for word in words]
    return pa.table(
        {
            "thing_id": pa.array([content_id(word, recipe.id) for word in words], pa.string()),
            "word": pa.array(made, pa.string()),
            "letters": pa.array([list(word) for word in made], pa.list_(pa.string())),
            "took": pa.array([next(_numbers) for _ in words], pa.int64()),
            "input_id": pa.array(list(words), pa.string()),
        }
    )
