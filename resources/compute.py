"""Where batches are worked on.

Belongs here: `map()` over batches, and its backends. Does not belong here: what is done with a batch, or how its
result is committed (storage/refresh.py).
"""

from resources.settings import ComputeSettings
from storage.refresh import Mapper, map_here


def build_compute(settings: ComputeSettings) -> Mapper:
    """The mapper that the profile names; `local` works batch after batch in this process."""
    del settings  # one backend so far
    return map_here
