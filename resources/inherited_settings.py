"""Settings that say only what is different: a profile that extends another, a target that is like another.

Belongs here: putting such sections together, before anything is validated. Does not belong here: what the settings are
(settings.py).
"""

from collections.abc import Mapping
from typing import Any

Section = Mapping[str, Any]

BACKEND = "backend"
EXTENDS = "extends"
LIKE = "like"


def laid_over(below: Section, above: Section) -> dict[str, Any]:
    """`below` with every key that `above` has, section by section. A section of another backend takes nothing over:
    its keys are others."""
    whole = dict(below)
    for key, value in above.items():
        there = whole.get(key)
        if isinstance(there, Mapping) and isinstance(value, Mapping) and _same_backend(there, value):
            whole[key] = laid_over(there, value)
        else:
            whole[key] = value
    return whole


def with_likes(targets: Section) -> dict[str, Any]:
    """Targets whose settings are their own laid over those of the target that they are `like`.

    Raises ValueError for one that is not named above.
    """
    whole: dict[str, Any] = {}
    for name, own in targets.items():
        other = own.get(LIKE) if isinstance(own, Mapping) else None
        if other is None:
            whole[name] = own
        elif other in whole:
            whole[name] = laid_over(whole[other], own)
        else:
            raise ValueError(f"targets.{name}.{LIKE} = {str(other)[:80]!r}: {named_above(whole)}")
    return whole


def named_above(names: Mapping[str, Any]) -> str:
    """What a reference to another target must be."""
    return f"must be a target that is named above it: {', '.join(names) or 'there is none'}"


def _same_backend(one: Section, other: Section) -> bool:
    return BACKEND not in other or one.get(BACKEND) == other[BACKEND]
