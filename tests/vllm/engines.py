"""Which vLLM engines this process has started and not ended."""

import psutil


def running_engines() -> list[int]:
    """The ids of this process' engines."""
    return [child.pid for child in psutil.Process().children() if _is_engine(child) and is_running(child.pid)]


def is_running(process: int) -> bool:
    """Whether a process is there; one that has ended and is yet to be buried holds nothing."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_engine(process: psutil.Process) -> bool:
    try:
        return "EngineCor" in process.name()
    except psutil.NoSuchProcess:
        return False
