"""Recipes: everything besides the input row that decides a result, as data with an id.

Here: the recipe itself, how it is kept in the lake, and which of its parts differ from another's. What goes
into the recipe of a given table is decided by whoever refreshes it.
"""

# ruff: noqa: S608 (SQL names come from Table, which takes plain identifiers only; values are parameters)

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import pyarrow as pa

from storage.ids import content_id
from storage.lake import Lake, Transaction
from storage.tables import RECIPES, TEXT, TIME

JSON: TypeAlias = "str | int | float | bool | Mapping[str, JSON] | list[JSON] | tuple[JSON, ...] | None"


def canonical_json(value: JSON) -> str:
    """The one spelling of a JSON value: keys sorted, no white space. ValueError for NaN and infinities,
    TypeError for what is not JSON."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_as_mapping
    )


def _as_mapping(value: object) -> dict[str, object]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a recipe holds JSON values only, not {type(value).__name__}: {value!r}")


@dataclass(frozen=True)
class Recipe:
    """Named parts, such as the model's identity, the template's hash, sampling settings, the code version."""

    parts: Mapping[str, JSON]

    @property
    def id(self) -> str:
        """Content id of the parts; their order does not matter."""
        return content_id(canonical_json(self.parts))

    def changed_parts(self, others: Iterable[Mapping[str, JSON]]) -> tuple[str, ...]:
        """Names of the parts that any of the others has differently, lacks, or has besides."""
        absent = object()
        changed = {
            name
            for other in others
            for name in (*self.parts, *other)
            if _spelled(self.parts.get(name, absent)) != _spelled(other.get(name, absent))
        }
        return tuple(sorted(changed))


def _spelled(value: object) -> str | None:
    return None if type(value) is object else canonical_json(value)  # type: ignore[arg-type]


def stamped(rows: pa.Table, recipe_id: str, run_id: str) -> pa.Table:
    """The rows with the lineage columns recipe, run_id and made_at (now, UTC); input_id they bring."""
    now = datetime.datetime.now(datetime.UTC)
    values = {"recipe": (recipe_id, TEXT), "run_id": (run_id, TEXT), "made_at": (now, TIME)}
    rows = rows.drop_columns([name for name in values if name in rows.column_names])
    for name, (value, type_) in values.items():
        rows = rows.append_column(name, pa.repeat(pa.scalar(value, type_), rows.num_rows))
    return rows


def remember(transaction: Transaction, recipe: Recipe) -> None:
    """Keep the recipe in the lake, once."""
    transaction.insert(
        RECIPES,
        pa.Table.from_pylist(
            [
                {
                    "recipe": recipe.id,
                    "parts": canonical_json(recipe.parts),
                    "first_seen": datetime.datetime.now(datetime.UTC),
                }
            ],
            schema=RECIPES.arrow_schema,
        ),
    )


def recall(lake: Lake, recipe_ids: Iterable[str]) -> list[Mapping[str, JSON]]:
    """The parts of the recipes that are known by these ids."""
    wanted = sorted(set(recipe_ids))
    if not wanted or not lake.exists(RECIPES):
        return []
    rows = lake.query(f"SELECT parts FROM {RECIPES.qualified} WHERE recipe IN (SELECT unnest(?))", [wanted])
    return [json.loads(parts) for parts in rows["parts"].to_pylist()]
