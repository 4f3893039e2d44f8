"""What a profile uses: every model that runs on this machine, and every server that is asked.

Belongs here: walking through the profile. Does not belong here: any check.
"""

from collections.abc import Iterator

from resources.backend_settings import (
    DiffusersSettings,
    EndpointSettings,
    LlmJudgeSettings,
    TransformersModelSettings,
    VllmModelSettings,
)
from resources.settings import Profile

LocalLanguageModel = TransformersModelSettings | VllmModelSettings
LocalModel = LocalLanguageModel | DiffusersSettings


def language_models(profile: Profile) -> Iterator[tuple[str, LocalLanguageModel]]:
    """Language models that run on this machine, each with its key in the profile."""
    named = [("language_model", profile.language_model), ("policy", profile.policy)]
    if isinstance(profile.judge, LlmJudgeSettings):
        named.append(("judge.language_model", profile.judge.language_model))
    for key, settings in named:
        if isinstance(settings, TransformersModelSettings | VllmModelSettings):
            yield key, settings


def video_models(profile: Profile) -> Iterator[tuple[str, DiffusersSettings]]:
    """Video models that run on this machine."""
    for name, target in profile.targets.items():
        if isinstance(target.video_generator, DiffusersSettings):
            yield f"targets.{name}.video_generator", target.video_generator


def local_models(profile: Profile) -> Iterator[tuple[str, LocalModel]]:
    """All models that run on this machine."""
    yield from language_models(profile)
    yield from video_models(profile)


def endpoints(profile: Profile) -> Iterator[tuple[str, EndpointSettings]]:
    """All servers."""
    named: list[tuple[str, object]] = [("language_model", profile.language_model)]
    if isinstance(profile.judge, LlmJudgeSettings):
        named.append(("judge.language_model", profile.judge.language_model))
    for name, target in profile.targets.items():
        named.append((f"targets.{name}.video_generator", target.video_generator))
        named.append((f"targets.{name}.video_reward", target.video_reward))
    for key, settings in named:
        if isinstance(settings, EndpointSettings):
            yield key, settings


def trained_key(profile: Profile) -> str:
    """The key of the model that is fine-tuned."""
    return "language_model" if profile.policy is None else "policy"
