"""The video models that come with the platform.

Belongs here: which names a profile may give, and the folders of their weights. Does not belong here: what they are
(ml/shapes) or rendering with them (diffusers_generator.py).
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from resources.backend_settings import EMBEDDED

EMBEDDED_LATTE = "embedded_latte"

_SHAPES = Path(__file__).parent.parent / "ml" / "shapes"

EMBEDDED_VIDEO_MODELS: Mapping[str, Path] = MappingProxyType(
    {EMBEDDED: _SHAPES / "weights", EMBEDDED_LATTE: _SHAPES / "latte_weights"}
)
"""Folder by the name that stands in `video_generator.model`."""
