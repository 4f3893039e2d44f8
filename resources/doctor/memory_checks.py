"""Does each model fit where it runs, and does the training?

Belongs here: comparing estimates (memory.py) with the machine. Does not belong here: the arithmetic. Models are used
one after the other, so each is compared with the whole of a GPU.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ml.fine_tuning import DpoSettings, TrainingSettings
from resources.backend_settings import DiffusersSettings, TransformersModelSettings, VllmModelSettings
from resources.doctor.devices import runs_on_cpu
from resources.doctor.findings import Finding, fault, ok, warning
from resources.doctor.launch import is_sharded, processes_of
from resources.doctor.machine import Gpu, Machine
from resources.doctor.memory import BYTES, MARGIN, ModelShape, cache_bytes, training_need
from resources.doctor.needs import language_models, trained_key, video_models
from resources.doctor.sizes import gib
from resources.doctor.weights import Weights
from resources.ray_worker import NodeMemory
from resources.settings import Profile

LARGEST_ON_CPU = 2_000_000_000
"""Parameters above which a language model on the CPU is no plan. Ours: such a model writes about a word a second."""
TOKENS_OF_A_PROMPT = 1024
"""What a conversation is taken to be long, beside what is written to it. Ours."""


def check_memory(profile: Profile, machine: Machine, weights: Mapping[str, Weights]) -> Iterator[Finding]:
    """A line for every model whose weights are known, and for every training."""
    gpus = machine.gpus()
    for key, settings in language_models(profile):
        if key not in weights:
            continue
        if isinstance(settings, VllmModelSettings):
            if gpus and not runs_on_cpu(machine):
                yield from _vllm(key, settings, weights[key], gpus)
        else:
            tokens = TOKENS_OF_A_PROMPT + _longest_answer(profile)
            yield from _transformers(key, settings, weights[key], tokens, machine)
    for key, video in video_models(profile):
        if key in weights:
            yield from _diffusers(key, video, weights[key], machine)
    trained = weights.get(trained_key(profile))
    if trained is not None and trained.shape is not None:
        yield from _training(profile, trained.shape, machine)


def _longest_answer(profile: Profile) -> int:
    samplings = [profile.drafts.sampling]
    for target in profile.targets.values():
        samplings += [target.candidates.sampling, target.evaluation.sampling]
    return max(sampling.max_new_tokens for sampling in samplings)


def _vllm(key: str, settings: VllmModelSettings, weights: Weights, gpus: Sequence[Gpu]) -> Iterator[Finding]:
    used = gpus[: settings.tensor_parallel_size]
    gpu = min(used, key=lambda one: one.memory)
    share = settings.gpu_memory_utilization * gpu.memory
    if gpu.free < share:
        yield fault(
            key,
            f"vLLM wants {gib(share)} of a GPU ({settings.gpu_memory_utilization:g} of it), and {gib(gpu.free)} are "
            "free: other programs have the rest",
            "end them (nvidia-smi names them), or lower gpu_memory_utilization",
        )
    loaded = weights.stored if settings.quantization else weights.bytes_in(settings.dtype)
    need = loaded / settings.tensor_parallel_size
    shown = f"weights {gib(need)}"
    window = settings.max_model_len or (weights.shape.window if weights.shape else None)
    if weights.shape and window:
        cache = cache_bytes(weights.shape, window, settings.dtype) / settings.tensor_parallel_size
        need += cache
        shown += f" and {gib(cache)} for one text of {window:,} tokens"
    remedy = "lower max_model_len, name a smaller or quantized model, or share it: tensor_parallel_size"
    yield _compared(key, f"{shown}, by estimate", need, share, "vLLM's part of a GPU", remedy)


def _transformers(
    key: str, settings: TransformersModelSettings, weights: Weights, tokens: int, machine: Machine
) -> Iterator[Finding]:
    need = float(weights.bytes_in(settings.dtype))
    shown = f"weights {gib(need)}"
    if weights.shape:
        cache = cache_bytes(weights.shape, tokens * settings.batch_size, settings.dtype)
        need += cache
        shown += f" and {gib(cache)} for {settings.batch_size} texts of {tokens:,} tokens"
    shown += ", by estimate"
    gpus = machine.gpus()
    remedy = "lower batch_size, or name a smaller model"
    if gpus and settings.device != "cpu":
        yield _compared(key, shown, need, gpus[0].free, "what is free on the GPU", remedy)
        return
    count = weights.parameters
    if count is not None and count > LARGEST_ON_CPU:
        yield fault(
            key,
            f"{count / 1e9:.1f} billion parameters on the CPU: it would write about a word a second",
            "run it on a machine with a GPU, or name a smaller model",
        )
    yield _compared(key, shown, need, machine.main_memory(), "main memory", remedy)


def _diffusers(key: str, settings: DiffusersSettings, weights: Weights, machine: Machine) -> Iterator[Finding]:
    gpus = machine.gpus()
    sizes = {name: part.bytes_in(settings.dtype) for name, part in weights.parts.items()}
    if settings.layerwise_casting and "transformer" in sizes:
        sizes["transformer"] //= BYTES[settings.dtype]
    if settings.offload in ("sequential", "group"):
        yield _compared(
            key,
            f"all weights {gib(sum(sizes.values()))}, a piece at a time on the GPU",
            sum(sizes.values()),
            machine.main_memory(),
            "main memory, where they wait",
            "name a smaller model",
        )
        return
    if settings.offload == "model":
        largest = max(sizes, key=lambda name: sizes[name])
        need, shown = sizes[largest], f"largest part ({largest}) {gib(sizes[largest])}"
    else:
        need, shown = sum(sizes.values()), f"weights {gib(sum(sizes.values()))}"
    remedy = "set offload: model, group or sequential, or layerwise_casting: true; or name a smaller model"
    if gpus and settings.device != "cpu":
        text = f"{shown}; the clip itself comes on top"
        yield _compared(key, text, need, gpus[0].free, "what is free on the GPU", remedy, tight=0.8)
    else:
        yield _compared(key, shown, need, machine.main_memory(), "main memory", "name a smaller model")


@dataclass(frozen=True)
class _Training:
    """What one process of a training needs, in figures and in words, and what to do where that is too much."""

    key: str
    need: float
    shown: str
    remedy: str


def _training(profile: Profile, shape: ModelShape, machine: Machine) -> Iterator[Finding]:
    if profile.trainer.launcher == "ray":
        return  # on the nodes of a cluster: training_cluster.py asks them
    gpus, processes = machine.gpus(), processes_of(profile, machine)
    for training in _trainings(profile, shape, processes):
        if gpus:
            have, where = min(gpu.free for gpu in gpus[:processes]), "what is free on a GPU"
            shown = f"{training.shown} on each GPU, by estimate"
            yield _compared(training.key, shown, training.need, have, where, training.remedy)
        else:
            yield from _on_cpu(training, shape, processes, machine.main_memory(), "main memory")


def check_training_memory(
    profile: Profile, weights: Mapping[str, Weights], nodes: Sequence[NodeMemory]
) -> Iterator[Finding]:
    """A line for every training on a Ray cluster, about the node that is the tightest. Nothing where neither the
    model's shape nor a node is known. Workers are spread, so a node has at most its share of them, rounded up.
    """
    trained, settings = weights.get(trained_key(profile)), profile.trainer.ray
    if trained is None or trained.shape is None:
        return
    for training in _trainings(profile, trained.shape, settings.workers):
        if settings.gpus_per_worker:
            cards = [(free, node.host) for node in nodes for free in node.free_on_gpus]
            if cards:
                have, host = min(cards)
                shown = f"{training.shown} on each GPU, by estimate"
                where = f"what is free on a GPU of the node {host}"
                yield _compared(training.key, shown, training.need, have, where, training.remedy)
        elif nodes:
            have, host = min((node.main, node.host) for node in nodes)
            on_a_node = math.ceil(settings.workers / len(nodes))
            yield from _on_cpu(training, trained.shape, on_a_node, have, f"main memory of the node {host}")


def _on_cpu(training: _Training, shape: ModelShape, processes: int, have: float, where: str) -> Iterator[Finding]:
    need = training.need * processes
    yield _compared(training.key, f"{training.shown}, by estimate", need, have, where, training.remedy)
    if shape.parameters > LARGEST_ON_CPU:
        yield fault(training.key, "a model of this size is not trained on the CPU", "train on a machine with a GPU")


def _trainings(profile: Profile, shape: ModelShape, processes: int) -> Iterator[_Training]:
    trainings: list[tuple[str, TrainingSettings]] = [("sft", profile.sft)]
    trainings += [(f"targets.{name}.dpo", target.dpo) for name, target in profile.targets.items()]
    sharded = is_sharded(profile.trainer)
    for key, settings in trainings:
        pairs = isinstance(settings, DpoSettings)
        try:
            need = training_need(
                shape,
                settings,
                dtype=profile.trained_model.dtype,
                processes=processes,
                sharded=sharded,
                pairs=pairs,
                reference_stays=isinstance(settings, DpoSettings) and not settings.precompute_reference,
            )
        except ValueError:
            continue  # the processes cannot share a batch: training.py says so
        shown = (
            f"weights {gib(need.weights)}, gradients {gib(need.gradients)}, optimizer {gib(need.optimizer)}, "
            f"activations {gib(need.activations)}" + (f", reference {gib(need.reference)}" if need.reference else "")
        )
        remedy = "lower micro_batch_size or max_length" + (
            "" if settings.gradient_checkpointing else "; turn on gradient_checkpointing"
        )
        if settings.lora is None:
            remedy += "; train with lora"
        if not sharded:
            remedy += "; or split the model over GPUs: trainer.accelerate: fsdp or zero3"
        yield _Training(key, need.total, shown, remedy)


def _compared(
    key: str, shown: str, need: float, have: float, where: str, remedy: str, *, tight: float = MARGIN
) -> Finding:
    text = f"{shown}: {gib(need)} of {gib(have)}, {where}"
    if need > have:
        return fault(key, f"too little memory: {text}", remedy)
    if need > tight * have:
        return warning(key, f"memory is tight: {text}", remedy)
    return ok(key, f"fits: {text}")
