"""How two recipes differ, setting by setting.

Belongs here: comparing the parts of recipes as nested data. Does not belong here: saying it in words
(vpo_assets/plan_words.py), or what a recipe is (storage/recipe.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from storage.recipe import JSON


class _Absent:
    """What stands for a part that a recipe does not have."""

    def __repr__(self) -> str:
        return "absent"


ABSENT: Final = _Absent()


@dataclass(frozen=True)
class Difference:
    """One setting that two recipes have differently. `name` is its path (``sampling.temperature``); `before` and
    `after` are JSON values, or ABSENT where one of the recipes does not have it."""

    name: str
    before: Any
    after: Any


def differences(before: Mapping[str, JSON], after: Mapping[str, JSON]) -> tuple[Difference, ...]:
    """The settings that differ, by name. Mappings are compared inside, as are texts that hold a JSON object."""
    old, new = dict(_leaves(before, "")), dict(_leaves(after, ""))
    return tuple(
        Difference(name, old.get(name, ABSENT), new.get(name, ABSENT))
        for name in sorted(old.keys() | new.keys())
        if name not in old or name not in new or _spelled(old[name]) != _spelled(new[name])
    )


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    inside = _opened(value)
    if not inside and name:
        yield name, value
        return
    for key, part in inside.items():
        yield from _leaves(part, f"{name}.{key}" if name else str(key))


def _opened(value: Any) -> Mapping[str, Any]:
    """What is inside a mapping, or a text that is one in JSON; nothing for anything else."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, str) and value.startswith("{"):
        try:
            read = json.loads(value)
        except ValueError:
            return {}
        return read if isinstance(read, dict) else {}
    return {}


def _spelled(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
