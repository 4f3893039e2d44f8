"""Ends an engine whose owner is gone: `python engine_watch.py PID ...`, with a pipe from the owner as standard input.

A script that needs nothing but Python. The pipe is never written to; it ends when the owner does, however that was
killed. vLLM's engine would wait for its next order for ever, and hold the GPU's memory.
Belongs here: that watch. Does not belong here: ending an engine in the ordinary way (vllm_model.py).
"""

import contextlib
import os
import signal
import sys
import time

SECONDS_TO_END = 10.0


def end(processes: list[int]) -> None:
    """Ask the processes to end, and make those that have not after a while."""
    for ending, patience in ((signal.SIGTERM, SECONDS_TO_END), (signal.SIGKILL, 0.0)):
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, ending)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and any(_exists(process) for process in processes):
            time.sleep(0.1)


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.stdin.buffer.read()
    end([int(argument) for argument in sys.argv[1:]])
