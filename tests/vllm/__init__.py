"""Tests on a real vLLM. They run in its own environment: `make vllm-env`, then `.venv-vllm/bin/pytest -m vllm`."""

from importlib.util import find_spec

import pytest

NEEDS_VLLM = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("vllm") is None,
        reason="vLLM is not in this environment: make vllm-env, .venv-vllm/bin/pytest -m vllm",
    ),
]
