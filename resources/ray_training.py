"""A training by Ray Train, driven from a process of its own: `python -m resources.ray_training PLAN.json`.

Belongs here: joining the cluster, having Ray Train start workers (and start them again when one is lost), passing on
what they say, and ending with the run. To whoever started it, this process is like that of a training on this machine
(ml/supervision.py): it prints its progress, saves the state at SIGTERM, and ends with its parent; Ray ends the workers
when it is gone. Does not belong here: what a worker does (ray_training_worker.py).
"""

import os
import secrets
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ml.fine_tuning import TrainingJob
from ml.parent_death import die_with_parent
from ml.supervision import FAILURE_MARK, INTERRUPTED, PROGRESS_MARK, tell
from resources.compute_settings import RayTrainingSettings
from resources.outcome import Unavailable
from resources.ray_cluster import connect
from resources.ray_compute import GIB, death_in_words
from resources.ray_training_worker import (
    BEGUN,
    FAILED,
    FIGURES,
    LISTENING,
    STOPPED,
    Relay,
    WorkersTask,
    launch_environment,
    work,
)
from resources.ray_worker import project_code

SECONDS_BETWEEN_LOOKS = 0.2
OF_RAY_TRAIN = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths are those of this process
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
WHY_LOST = 300
"""Characters of what Ray says about lost workers."""


class TrainingPlan(BaseModel):
    """What this process is started with. `launch`: arguments of `accelerate launch` that say how weights are split;
    none: every worker has them all. `environment`: variables of every worker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["sft", "dpo"]
    job: TrainingJob
    ray: RayTrainingSettings
    launch: tuple[str, ...] | None = None
    environment: dict[str, str] = {}


class Failed(RuntimeError):
    """The training cannot be ended; says why."""


class Stopped(RuntimeError):
    """The training was asked to end."""


class TrainingOnRay:
    """One training, from joining the cluster to the end."""

    def __init__(self, plan: TrainingPlan) -> None:
        self._plan = plan
        self._task = _task(plan)
        self._asked = threading.Event()
        self._listening = False
        self._groups = 0
        self._over = threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        """Train. Raises Failed, Stopped and Unavailable."""
        signal.signal(signal.SIGTERM, lambda *_: self._asked.set())
        os.environ.update(OF_RAY_TRAIN, RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S=str(self._plan.ray.start_seconds))
        for file, text in self._task.probes.items():
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text(text)
        try:
            ray = connect(self._plan.ray, show_workers=True)
            relay = _beside_this_process(ray)
            threading.Thread(target=self._fit, args=(relay,), daemon=True).start()
            self._follow(ray, relay)
        finally:
            for file in self._task.probes:
                Path(file).unlink(missing_ok=True)
            shutil.rmtree(_markers(self._task), ignore_errors=True)

    def _fit(self, relay: Any) -> None:
        try:
            _ray_trainer(self._plan, self._task, relay).fit()
        except BaseException as error:  # raised by the process's main thread
            self._error = error
        finally:
            self._over.set()

    def _follow(self, ray: Any, relay: Any) -> None:
        """Pass on what the workers say until there is nothing more."""
        began = time.monotonic()
        asked = False
        while True:
            over = self._over.wait(SECONDS_BETWEEN_LOOKS)
            for kind, what in ray.get(relay.taken.remote()):
                self._heard(kind, what)
            if over:
                break
            if self._asked.is_set() and not asked:
                if not self._listening:
                    raise Stopped("it was asked to end before its first step: run it again")
                ray.get(relay.ask_to_end.remote())
                asked = True
            if self._groups == 0 and time.monotonic() - began > self._plan.ray.start_seconds:
                raise Unavailable(_no_room(ray, self._plan.ray))
        if self._error is not None:
            raise Failed(self._lost()) from self._error

    def _heard(self, kind: str, what: Any) -> None:
        if kind == FIGURES:
            tell(PROGRESS_MARK, what)
        elif kind == LISTENING:
            self._listening = what
        elif kind == BEGUN:
            self._groups += 1
            if self._groups > 1:
                print("a worker was lost; all were started again, from the last state", flush=True)
        elif kind == FAILED:
            raise Failed(what)
        elif kind == STOPPED:
            raise Stopped(what)

    def _lost(self) -> str:
        """Why Ray Train gave up."""
        assert self._error is not None
        failures = getattr(self._error, "worker_failures", None) or {0: self._error}
        reasons = [death_in_words(failure) for failure in failures.values() if isinstance(failure, Exception)]
        told = next((reason for reason in reasons if "memory" in reason), (reasons or [str(self._error)])[0])
        return (
            f"Ray Train gave up after {self._plan.ray.max_failures} new starts (trainer.ray.max_failures): "
            f"{told[:WHY_LOST]}"
        )


def _task(plan: TrainingPlan) -> WorkersTask:
    name, text = f".seen-by-workers-{secrets.token_hex(8)}", secrets.token_hex(16)
    return WorkersTask(
        method=plan.method,
        job=plan.job,
        environment=plan.environment | _of_accelerate(plan.launch),
        code=project_code(),
        probes={str(folder / name): text for folder in (plan.job.work, plan.job.output)},
    )


def _of_accelerate(launch: tuple[str, ...] | None) -> dict[str, str]:
    """The variables by which `accelerate launch` with these arguments tells its processes how to train."""
    if launch is None:
        return {}
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    parsed = launch_command_parser().parse_args([*launch, "unused.py"])
    arguments, defaults, _ = _validate_launch_command(parsed)
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config if defaults else ())
        return launch_environment(prepare_deepspeed_cmd_env(arguments)[1])
    return launch_environment(prepare_multi_gpu_env(arguments))


def _beside_this_process(ray: Any) -> Any:
    """The relay, on this process's own node: it lives as long as this process does."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Relay).options(num_cpus=0, scheduling_strategy=here).remote()


def _ray_trainer(plan: TrainingPlan, task: WorkersTask, relay: Any) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    settings = plan.ray
    resources: dict[str, float] = {"CPU": settings.cpus_per_worker}
    if settings.gpus_per_worker:
        resources["GPU"] = settings.gpus_per_worker
    if settings.memory_gb_per_worker is not None:
        resources["memory"] = int(settings.memory_gb_per_worker * GIB)
    return TorchTrainer(
        work,
        train_loop_config={"task": task.model_dump_json(), "relay": relay},
        scaling_config=ScalingConfig(
            num_workers=settings.workers,
            use_gpu=bool(settings.gpus_per_worker),
            resources_per_worker=resources,
            placement_strategy="SPREAD",
        ),
        run_config=RunConfig(
            name=task.job.output.name,
            storage_path=str(_markers(task)),
            failure_config=FailureConfig(
                max_failures=settings.max_failures, controller_failure_limit=settings.max_failures
            ),
            worker_runtime_env=dict(settings.environment) or None,
        ),
    )


def _markers(task: WorkersTask) -> Path:
    """Where Ray Train puts its markers: the states are the training's own."""
    return task.job.work / "ray"


def _no_room(ray: Any, settings: RayTrainingSettings) -> str:
    has = {name: ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
    return (
        f"Ray has not started {settings.workers} workers for {settings.start_seconds:g} s (trainer.ray.start_seconds): "
        f"each asks for {settings.cpus_per_worker:g} CPUs and {settings.gpus_per_worker} GPUs, and the nodes together "
        f"have {has['CPU']:g} CPUs and {has['GPU']:g} GPUs, part of which others may hold. Ask for less, or add nodes"
    )


def main() -> int:
    """Exit status: 0, INTERRUPTED, or 1 for a failure, whose reason is then the last line."""
    die_with_parent()
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: python -m {__spec__.name} PLAN.json")
    try:
        TrainingOnRay(TrainingPlan.model_validate_json(Path(sys.argv[1]).read_text())).run()
    except Stopped as stopped:
        tell(FAILURE_MARK, str(stopped))
        return INTERRUPTED
    except (Failed, Unavailable) as error:
        tell(FAILURE_MARK, str(error))
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    sys.stdout.flush()
    os._exit(status)  # without waiting for Ray Train's thread, which may still wait for workers
