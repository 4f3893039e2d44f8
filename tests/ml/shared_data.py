"""Where the real data lie that some tests read. They are not part of the project; without them those tests
skip.
"""

import os
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "data"


def shared_data(*parts: str) -> Path:
    """The path below VPO_SHARED_DATA (default: ../shared/data beside the checkout); skips the test if it is
    missing.
    """
    path = Path(os.environ.get("VPO_SHARED_DATA", _DEFAULT)).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is not here; set VPO_SHARED_DATA to the folder of the shared data")
    return path
