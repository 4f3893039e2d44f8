"""Where Dagster keeps what a step prints, without a process beside it.

Belongs here: the capture of standard output and error into the instance's files, as the UI shows them. Does not belong
here: what the terminal shows of a run (progress.py).

Dagster's own local capture starts `tail -F` and a watcher for each of the two streams of every step, to repeat them on
the terminal. A run that is killed between the start of a reader and of its watcher leaves the reader running for ever,
and a step that takes no time waits for four processes. Here the streams go to the files and nowhere else.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from dagster import Field, StringSource
from dagster._config.config_schema import UserConfigSchema
from dagster._core.execution.compute_logs import redirect_to_file
from dagster._core.storage.compute_log_manager import CapturedLogContext, ComputeIOType
from dagster._core.storage.local_compute_log_manager import IO_TYPE_EXTENSION, LocalComputeLogManager
from dagster._serdes import ConfigurableClassData
from dagster._utils import ensure_file, touch_file


class FileComputeLogs(LocalComputeLogManager):
    """Dagster's local log manager, in the same files; only the capture is another."""

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """`base_dir`: the folder of the files; left out, `storage` in DAGSTER_HOME, as Dagster has it."""
        return {"base_dir": Field(StringSource, is_required=False)}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """As dagster.yaml says."""
        folder = config_value.get("base_dir") or str(Path(os.environ["DAGSTER_HOME"]) / "storage")
        return cls(folder, inst_data=inst_data)

    @contextmanager
    def capture_logs(self, log_key: Sequence[str]) -> Iterator[CapturedLogContext]:
        """While this is open, what the process and its children print goes to the files of this key."""
        out, err = (
            self.get_captured_local_path(log_key, IO_TYPE_EXTENSION[kind])
            for kind in (ComputeIOType.STDOUT, ComputeIOType.STDERR)
        )
        ensure_file(out)
        ensure_file(err)
        with redirect_to_file(sys.stdout, out), redirect_to_file(sys.stderr, err):
            yield CapturedLogContext(log_key)
        touch_file(self.get_captured_local_path(log_key, "complete"))  # by this, readers know that it is whole
