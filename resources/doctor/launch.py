"""How a training would be launched here: its accelerate config, processes, and whether it splits the model.

Belongs here: reading the trainer's settings. Does not belong here: starting anything (resources/trainer.py).
"""

from pathlib import Path

from resources.doctor.machine import Machine
from resources.settings import LAUNCHES, ONE_PROCESS, Profile, TrainerSettings


def processes_of(profile: Profile, machine: Machine) -> int:
    """How many processes a training would have on this machine, or on a cluster."""
    trainer = profile.trainer
    if trainer.launcher == "ray":
        return trainer.ray.workers
    if trainer.accelerate in ONE_PROCESS:
        return 1
    return max(1, len(machine.gpus())) if trainer.processes == "auto" else trainer.processes


def is_sharded(trainer: TrainerSettings) -> bool:
    """Whether weights, gradients and optimizer are split over the processes."""
    config = trainer.accelerate_config
    if trainer.accelerate in LAUNCHES or config is None or problem_of_config(config):
        return trainer.accelerate in ("fsdp", "zero3")
    from accelerate.commands.config.config_args import load_config_from_file

    return str(load_config_from_file(str(config)).distributed_type.value) in ("FSDP", "DEEPSPEED")


def problem_of_config(file: Path) -> str | None:
    """What accelerate's own loader has against a config; None if it takes it."""
    from accelerate.commands.config.config_args import load_config_from_file

    if not file.is_file():
        return f"{file}: there is no such file"
    try:
        load_config_from_file(str(file))
    except Exception as error:  # of many kinds, from the YAML reader and from accelerate
        return f"{file}: accelerate cannot use it: {' '.join(str(error).split())[:300]}"
    return None
