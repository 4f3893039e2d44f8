"""Training in a process of its own: started, watched, and ended with the run that wanted it.

Belongs here: starting ml/sft.py, ml/dpo.py and ml/diffusion_dpo.py, alone, over several devices or by Ray over several
machines, passing their progress on, and turning their failures into one clear message. Does not belong here: the
training itself.
"""

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, TypeAlias

from ml.fine_tuning import TrainingJob
from ml.parent_death import die_with_parent
from ml.supervision import FAILURE_MARK, INTERRUPTED, PROGRESS_MARK
from resources.compute_settings import ComputeSettings, LocalComputeSettings
from resources.settings import ONE_PROCESS, TrainerSettings

OnProgress = Callable[[dict[str, float]], None]
Method: TypeAlias = Literal["sft", "dpo", "diffusion_dpo"]
ALONE = frozenset({"diffusion_dpo"})
"""Trained in one plain process on one device, whatever the profile chooses for language models."""

LINES_SHOWN = 15
SECONDS_TO_END = 120
"""A training that is asked to end finishes its step and saves its state, which for a large model takes its time."""
QUIETLY = {"HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
OF_A_GROUP = frozenset({"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"})
"""Variables of a process that is one of several; a scheduler may have set them for the run, not for its training."""
WHOLE_STATES = frozenset({"none", "single", "ddp"})
MIXED_PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
MEMORY_ADVICE = (
    "the GPU has too little memory for this training: lower micro_batch_size or max_length, turn on "
    "gradient_checkpointing, train with lora, or split the model over GPUs with trainer.accelerate: fsdp or zero3"
)


class TrainingFailed(RuntimeError):
    """A training process that ended without a model, with the last lines it printed."""


class TrainingInterrupted(TrainingFailed):
    """A training that was asked to end, and left a state that the next run goes on from."""


@dataclass
class _Ending:
    """How a training ended: exit status, the first reason that a process gave, and the lines that led to it."""

    status: int = 0
    reason: str | None = None
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LINES_SHOWN))


class TrlTrainer:
    """TRL in a process group of its own: alone, over several devices by `accelerate launch`, or driven from there on a
    Ray cluster."""

    def __init__(self, settings: TrainerSettings | None = None, compute: ComputeSettings | None = None) -> None:
        self.settings = settings or TrainerSettings()
        self._compute = compute or LocalComputeSettings()

    def train(self, method: Method, job: TrainingJob, on_progress: OnProgress) -> None:
        """Run one job to its end; `on_progress` gets every logged step. Raises TrainingFailed."""
        if method in ALONE and self.settings != TrainerSettings():
            TrlTrainer().train(method, job, on_progress)
            return
        self._refuse_what_cannot_start()
        job = self._with_own_states(job)
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
            env=self._environment(os.environ),
            cwd=Path(__file__).parent.parent,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        try:
            ending = _follow(process, log_file, on_progress)
        finally:
            _end_group(process)
        if ending.status == INTERRUPTED:
            raise TrainingInterrupted(f"{method} was interrupted: {ending.reason or 'run it again'}")
        if ending.status != 0:
            raise TrainingFailed(_account(method, ending, log_file))

    def _command(self, method: str, job_file: Path) -> list[str]:
        if self.settings.launcher == "ray":
            return [sys.executable, "-m", "resources.ray_training", str(self._ray_plan(method, job_file))]
        module = ["-m", f"ml.{method}", str(job_file)]
        config = self.settings.accelerate_config
        if config is None and not self.settings.launch:
            return [sys.executable, *module]
        chosen: list[str] = []
        if config is not None:
            processes = self._processes()
            dtype = json.loads(job_file.read_text())["dtype"]
            chosen = [
                *("--config_file", str(config)),
                *("--num_processes", str(processes)),
                *("--num_cpu_threads_per_process", str(max(1, (os.cpu_count() or 1) // processes))),
                *("--main_process_port", "0"),  # whichever is free: another training may run here
                *("--mixed_precision", MIXED_PRECISION[dtype]),
            ]
        return [sys.executable, "-m", "accelerate.commands.launch", *chosen, *self.settings.launch, *module]

    def _ray_plan(self, method: str, job_file: Path) -> Path:
        """The file that a training on Ray is started with, beside that of its job."""
        job = json.loads(job_file.read_text())
        launch = None
        if self.settings.accelerate not in WHOLE_STATES:
            launch = [*("--config_file", str(self.settings.accelerate_config))]
            launch += [
                *("--num_processes", str(self._processes())),
                *("--mixed_precision", MIXED_PRECISION[job["dtype"]]),
            ]
        ray = self.settings.ray.on_cluster_of(self._compute)
        plan = {"method": method, "job": job, "ray": ray.model_dump(mode="json"), "launch": launch}
        file = job_file.with_name("ray_plan.json")
        file.write_text(json.dumps({**plan, "environment": QUIETLY}, indent=1))
        return file

    def _processes(self) -> int:
        if self.settings.launcher == "ray":
            return self.settings.ray.workers
        if self.settings.accelerate in ONE_PROCESS:
            return 1
        return max(1, _gpus()) if self.settings.processes == "auto" else self.settings.processes

    def _with_own_states(self, job: TrainingJob) -> TrainingJob:
        """States of a model in pieces can be resumed from in the same number of the same pieces only."""
        if self.settings.accelerate in WHOLE_STATES:
            return job
        pieces = f"{Path(self.settings.accelerate).stem}-{self._processes()}"
        return job.model_copy(update={"work": job.work / pieces})

    def _environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Nothing of the training is reported to anyone, and a process that is alone sees one GPU: TRL refuses to
        spread it over more.
        """
        chosen = {**QUIETLY, **environment}
        alone = self.settings.launcher == "accelerate" and (
            self.settings.accelerate == "single" or (self.settings.accelerate == "none" and not self.settings.launch)
        )
        if alone:
            chosen["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
            chosen = {name: value for name, value in chosen.items() if name not in OF_A_GROUP}
        return chosen

    def _refuse_what_cannot_start(self) -> None:
        config = self.settings.accelerate_config
        if config is not None and not config.is_file():
            raise TrainingFailed(f"trainer.accelerate = {str(config)!r}: there is no such file")
        if self.settings.accelerate == "zero3" and find_spec("deepspeed") is None:
            raise TrainingFailed(
                "trainer.accelerate: zero3 needs DeepSpeed: pip install 'deepspeed>=0.18.6', or choose fsdp"
            )


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _follow(process: subprocess.Popen[str], log_file: Path, on_progress: OnProgress) -> _Ending:
    """Read what the training prints to its end. After a reason for failure, more lines are logged but not shown:
    they are the launcher's, about what is known by then.
    """
    assert process.stdout is not None
    ending = _Ending()
    with log_file.open("a", encoding="utf-8") as log:
        for line in process.stdout:
            if line.startswith(PROGRESS_MARK):
                on_progress(json.loads(line.removeprefix(PROGRESS_MARK)))
            elif line.startswith(FAILURE_MARK):
                ending.reason = ending.reason or json.loads(line.removeprefix(FAILURE_MARK))
            else:
                log.write(line)
                log.flush()
                if ending.reason is None:
                    ending.lines.append(line.rstrip("\n"))
    ending.status = process.wait()
    return ending


def _account(method: str, ending: _Ending, log_file: Path) -> str:
    """What is said of a training that failed: the reason first, where the log is, and its last lines."""
    reason = f": {ending.reason}" if ending.reason else ""
    lines = [f"{method} ended with status {ending.status}{reason}; the log is {log_file} and ends with", *ending.lines]
    if "out of memory" in "\n".join([reason, *ending.lines]).lower():
        lines.insert(1, MEMORY_ADVICE)
    elif ending.status in (-signal.SIGKILL, 128 + signal.SIGKILL):
        lines.insert(1, "it was killed: by a person, or by the system for want of main memory")
    return "\n".join(lines)


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


def build_trainer(settings: TrainerSettings, compute: ComputeSettings | None = None) -> TrlTrainer:
    """The trainer that the profile names; on Ray it takes compute's cluster unless it has its own."""
    return TrlTrainer(settings, compute)
