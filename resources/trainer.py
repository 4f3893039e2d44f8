"""Training in a process of its own: started, watched, and ended with the run that wanted it.

Belongs here: starting ml/sft.py and ml/dpo.py, passing their progress on, and turning their failures into one
clear message. Does not belong here: the training itself.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from ml.fine_tuning import PROGRESS_MARK, TrainingJob
from ml.parent_death import die_with_parent
from resources.settings import TrainerSettings

OnProgress = Callable[[dict[str, float]], None]

LINES_SHOWN = 15
SECONDS_TO_END = 10


class TrainingFailed(RuntimeError):
    """A training process that ended without a model, with the last lines it printed."""


class TrlTrainer:
    """TRL in a process group of its own: alone, or over several devices by `accelerate launch`."""

    def __init__(self, launch: Sequence[str] = ()) -> None:
        self.launch = tuple(launch)

    def train(self, method: Literal["sft", "dpo"], job: TrainingJob, on_progress: OnProgress) -> None:
        """Run one job to its end; `on_progress` gets every logged step. Raises TrainingFailed."""
        job.work.mkdir(parents=True, exist_ok=True)
        job_file = job.work / "job.json"
        job_file.write_text(job.model_dump_json(indent=1))
        log_file = job.work / "training.log"
        process = subprocess.Popen(
            self._command(method, job_file),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=Path(__file__).parent.parent,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        try:
            status = _follow(process, log_file, on_progress)
        finally:
            _end_group(process)
        if status != 0:
            tail = "\n".join(log_file.read_text(errors="replace").splitlines()[-LINES_SHOWN:])
            raise TrainingFailed(f"{method} ended with status {status}; the log is {log_file} and ends with\n{tail}")

    def _command(self, method: str, job_file: Path) -> list[str]:
        module = ["-m", f"ml.{method}", str(job_file)]
        if not self.launch:
            return [sys.executable, *module]
        return [sys.executable, "-m", "accelerate.commands.launch", *self.launch, *module]


def _follow(process: subprocess.Popen[str], log_file: Path, on_progress: OnProgress) -> int:
    assert process.stdout is not None
    with log_file.open("a", encoding="utf-8") as log:
        for line in process.stdout:
            if line.startswith(PROGRESS_MARK):
                on_progress(json.loads(line.removeprefix(PROGRESS_MARK)))
            else:
                log.write(line)
                log.flush()
    return process.wait()


def _end_group(process: subprocess.Popen[str]) -> None:
    """End whatever is left of the process group, politely first."""
    for ending, patience in ((signal.SIGTERM, SECONDS_TO_END), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, ending)
        except ProcessLookupError:
            return
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def build_trainer(settings: TrainerSettings) -> TrlTrainer:
    """The trainer that the profile names."""
    return TrlTrainer(settings.launch)
