"""Can the training be started as the profile says?

Belongs here: accelerate's config, processes and batches. Does not belong here: memory (memory_checks.py).
"""

from collections.abc import Iterator

from ml.fine_tuning import TrainingSettings, micro_batch_size
from resources.doctor.findings import Finding, fault, ok, warning
from resources.doctor.launch import is_sharded, problem_of_config, processes_of
from resources.doctor.machine import Machine
from resources.settings import ONE_PROCESS, Profile


def check_training(profile: Profile, machine: Machine) -> Iterator[Finding]:
    """Whether accelerate reads its config, there is a GPU for every process, and batches can be shared."""
    trainer, gpus = profile.trainer, machine.gpus()
    key = "trainer.accelerate"
    config = trainer.accelerate_config
    if config is not None:
        problem = problem_of_config(config)
        if problem:
            yield fault(key, problem, "see the configs in resources/profiles/accelerate, or run `accelerate config`")
            return
    processes = processes_of(profile, machine)
    if trainer.launcher == "ray":
        pass  # its GPUs are those of the cluster: training_cluster.py
    elif trainer.accelerate not in ONE_PROCESS:
        if gpus and processes > len(gpus):
            yield fault(
                "trainer.processes",
                f"{processes} processes, but {len(gpus)} GPUs can be seen",
                "set trainer.processes to auto, or make more GPUs visible (CUDA_VISIBLE_DEVICES)",
            )
        elif not gpus and is_sharded(trainer):
            yield fault(
                key, f"{trainer.accelerate} splits the model over GPUs, and there is none", "choose none or ddp"
            )
    elif len(gpus) > 1:
        yield warning(
            key,
            f"{trainer.accelerate} trains on one of {len(gpus)} GPUs",
            "trainer.accelerate: ddp uses all, fsdp or zero3 split a large model over them",
        )
    shared, changed = True, "trainer.ray.workers" if trainer.launcher == "ray" else "trainer.processes"
    for name, settings in _trainings(profile):
        try:
            micro_batch_size(settings, processes)
        except ValueError as error:
            shared = False
            yield fault(name, f"{error}", f"make it a multiple of {processes}, or change {changed}")
    if shared:
        number = "1 process" if processes == 1 else f"{processes} processes"
        yield ok("trainer", f"{trainer.accelerate}, {number}, which share every batch evenly")


def _trainings(profile: Profile) -> list[tuple[str, TrainingSettings]]:
    dpo = [(f"targets.{name}.dpo.batch_size", target.dpo) for name, target in profile.targets.items()]
    return [("sft.batch_size", profile.sft), *dpo]
