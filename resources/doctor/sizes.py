"""Sizes as people read them.

Belongs here: turning bytes into words. Does not belong here: measuring anything.
"""

GIB = 2**30


def gib(size: float) -> str:
    """`14.2 GiB`, `0.25 GiB`, `120 GiB`. GPUs are sold in these units, disks in slightly smaller ones."""
    amount = size / GIB
    digits = 0 if amount >= 100 else 1 if amount >= 1 else 2
    return f"{amount:.{digits}f} GiB"
