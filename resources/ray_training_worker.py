"""One of Ray Train's workers: the same training as in a process of its own, with the others at their places.

Belongs here: what a worker does, and what it and the driver say to each other. Does not belong here: starting workers
(ray_training.py) and the training (ml/).
"""

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ml.fine_tuning import Interrupted, TrainingJob, end_together
from resources.ray_worker import CHECKOUT, Probe, described, project_code, store_fault

FIGURES, LISTENING, FAILED, STOPPED, BEGUN = "figures", "listening", "failed", "stopped", "begun"
LOST_COMPANY = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|socket|timed out|gloo|nccl|process group", re.IGNORECASE
)


class WorkersTask(BaseModel):
    """What every worker is given. `code` is the driver's, `probes` are files that it has put into the job's folders."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["sft", "dpo"]
    job: TrainingJob
    environment: dict[str, str]
    code: str
    probes: dict[str, str]


class Relay:
    """An actor beside the driver: what workers have said and the driver has not yet taken, and whether to end."""

    def __init__(self) -> None:
        self._said: list[tuple[str, Any]] = []
        self._end = False

    def say(self, kind: str, what: Any) -> None:
        """From a worker."""
        self._said.append((kind, what))

    def taken(self) -> list[tuple[str, Any]]:
        """For the driver: everything new, in order."""
        said, self._said = self._said, []
        return said

    def ask_to_end(self) -> None:
        """From the driver."""
        self._end = True

    def end_is_asked(self) -> bool:
        """For the first worker, after each step."""
        return self._end


class Driver:
    """A training's supervisor (ml/supervision.py) that is reached through the relay."""

    def __init__(self, relay: Any, rank: int) -> None:
        self._relay = relay
        self._is_first = rank == 0

    def progress(self, figures: dict[str, float]) -> None:
        self.say(FIGURES, figures)

    def listen(self) -> None:
        if self._is_first:
            self.say(LISTENING, True)

    def end_is_asked(self) -> bool:
        import ray

        return self._is_first and bool(ray.get(self._relay.end_is_asked.remote()))

    def stop_listening(self) -> None:
        if self._is_first:
            self.say(LISTENING, False)

    def say(self, kind: str, what: Any) -> None:
        import ray

        ray.get(self._relay.say.remote(kind, what))


class Unfit(RuntimeError):
    """This worker could not do what the driver would do; says what must be mended."""


def work(configuration: dict[str, Any]) -> None:
    """The whole of a worker: `task`, a WorkersTask in JSON, and `relay`, the actor. Called by Ray Train.

    An error that is this training's own is told to the driver, which then ends it all. One that comes from a worker
    that went away is only raised: Ray Train starts all workers again.
    """
    task = WorkersTask.model_validate_json(configuration["task"])
    rank = int(os.environ["RANK"])
    driver = Driver(configuration["relay"], rank)
    os.environ.update(task.environment)
    try:
        raise_if_unfit(task)
        if rank == 0:
            driver.say(BEGUN, None)
        _train(task, driver)
        end_together()
    except Interrupted as interrupted:
        end_together()
        if rank == 0:
            driver.say(STOPPED, str(interrupted))
    except Exception as error:
        if not comes_from_lost_company(error):
            driver.say(FAILED, str(error) if isinstance(error, Unfit) else described(error))
            time.sleep(5)  # the driver ends everything; what it would say is not to be lost in what follows
        raise


def _train(task: WorkersTask, driver: Driver) -> None:
    if task.method == "sft":
        from ml.sft import train
    else:
        from ml.dpo import train
    train(task.job, driver)


def comes_from_lost_company(error: BaseException) -> bool:
    """Whether an error says that another worker does not answer, rather than what is wrong here."""
    from torch.distributed import DistError

    if isinstance(error, DistError):
        return True
    return type(error) is RuntimeError and LOST_COMPANY.search(str(error)) is not None


def raise_if_unfit(task: WorkersTask) -> None:
    """Raise Unfit where the node has other code, or does not see the folders of the training."""
    import socket

    where = f"the Ray worker on {socket.gethostname()}"
    if task.code != project_code():
        raise Unfit(
            f"{where} runs other source code of the project ({CHECKOUT}) than the driver: install the same on every "
            "node, and leave it alone while a run goes on"
        )
    for file, text in task.probes.items():
        fault = store_fault(Probe(Path(file), text))
        if fault is not None:
            raise Unfit(
                f"{where} does not see the same store: {fault}. A training on Ray needs a VPO_HOME that all nodes "
                "share, and checkpoints there or in an object store"
            )
    missing = _missing_folder(task.job)
    if missing is not None:
        raise Unfit(f"{where} does not have {missing}, the model to train: it must lie on a file system that all share")


def _missing_folder(job: TrainingJob) -> str | None:
    """The base model, where it is a folder (and no name of the hub) that is not here."""
    folder = Path(job.base_model)
    return str(folder) if folder.is_absolute() and not folder.is_dir() else None


def launch_environment(configuration: Mapping[str, str]) -> dict[str, str]:
    """Of an environment, what tells accelerate how to train."""
    return {name: value for name, value in configuration.items() if name.startswith(("ACCELERATE_", "FSDP_"))}
