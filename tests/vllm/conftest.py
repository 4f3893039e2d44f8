"""SmolLM2 in vLLM: unpacked once, and served once for all tests that ask a server."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from resources.backend_settings import EndpointModelSettings, VllmModelSettings
from resources.embedded_language_model import embedded_language_model

WINDOW = 2048  # tokens
LONGEST_START = 300  # seconds
SERVED_NAME = "smollm2"
SMALL_SCHEMA = {
    "type": "object",
    "properties": {"better": {"type": "string", "enum": ["A", "B", "tie"]}, "sure": {"type": "boolean"}},
    "required": ["better", "sure"],
    "additionalProperties": False,
}


@pytest.fixture(scope="session", autouse=True)
def surroundings() -> Iterator[None]:
    """Little memory for vLLM on a CPU, and no proxy between a server here and its clients."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"))
        patch.setenv("VLLM_NO_USAGE_STATS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the embedded model."""
    return embedded_language_model(tmp_path_factory.mktemp("models"))


def vllm_settings(**changes: Any) -> VllmModelSettings:
    """vLLM without the compiling that a short test is not worth."""
    values = {"max_model_len": WINDOW, "max_num_seqs": 64, "enforce_eager": True, **changes}
    return VllmModelSettings.model_validate(values)


def server_settings(base_url: str, **changes: Any) -> EndpointModelSettings:
    """How the server is asked. The first request of a kind waits for things to be compiled."""
    values = {"base_url": base_url, "model": SERVED_NAME, "concurrency": 64, "timeout": 300, "retries": 1, **changes}
    return EndpointModelSettings.model_validate(values)


@pytest.fixture(scope="session")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a `vllm serve` on this machine alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [
        *(sys.executable, str(Path(__file__).with_name("serve.py")), "serve", str(smollm2)),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", SERVED_NAME),
        *("--max-model-len", str(WINDOW), "--max-num-seqs", "64", "--enforce-eager", "--no-enable-chunked-prefill"),
    ]
    with log.open("wb") as output:
        # A group of its own, so that the server and its engine end together.
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        _wait_until_it_answers(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        _end(process)


def _wait_until_it_answers(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + LONGEST_START
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(address, timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail(f"vllm serve did not start:\n{log.read_text(errors='replace')[-5000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    for ending in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, ending)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            continue
    process.wait(timeout=20)
