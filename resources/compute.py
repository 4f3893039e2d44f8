"""Where batches are worked on.

Belongs here: which mapper a stage's batches go through, by the profile and by what its backends need. Does not belong
here: what is done with a batch, or how its result is committed (storage/refresh.py).
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from resources.backend_settings import (
    DiffusersSettings,
    EndpointModelSettings,
    LlmJudgeSettings,
    OwnCodeSettings,
    Section,
    TransformersModelSettings,
    VideoServerSettings,
    VllmModelSettings,
)
from resources.compute_settings import ComputeSettings, RayComputeSettings, Stage
from resources.ray_compute import RayMapper
from storage.refresh import Mapper, map_here
from storage.remote_files import RemoteFiles


def build_mapper(
    settings: ComputeSettings,
    stage: Stage,
    backends: Iterable[Section],
    store: Path,
    places: Sequence[RemoteFiles | None] = (None,),
) -> Mapper:
    """The mapper for a stage whose work needs these backends; `store` is the folder that all workers must share.
    `places`: where in an object store the videos and the checkpoints lie, None for what lies in a folder. With all of
    them there each node may have a `store` of its own, but where a server's jobs are remembered in it: a batch that is
    done again elsewhere would pay for them again.

    `local` works batch after batch in this process. So does every stage that may spend money up to a limit, since one
    process must do the counting; what it waits for is a server, which is asked many things at once either way.
    """
    models = list(_models(backends))
    if not isinstance(settings, RayComputeSettings) or any(_has_limit(model) for model in models):
        return map_here
    own = settings.of_stage(stage)
    own_folders = None not in places and not any(isinstance(model, VideoServerSettings) for model in models)
    remote = tuple(place for place in places if place is not None)
    return RayMapper(own.model_copy(update={"gpus_per_worker": _gpus(own, models)}), store, remote, own_folders)


def _models(backends: Iterable[Section]) -> Iterator[Section]:
    for backend in backends:
        yield backend.language_model if isinstance(backend, LlmJudgeSettings) else backend


def _has_limit(model: Section) -> bool:
    return isinstance(model, EndpointModelSettings) and (
        model.budget.tokens is not None or model.budget.money is not None
    )


def _gpus(settings: RayComputeSettings, models: Iterable[Section]) -> float:
    """GPUs of one worker: none where no model is loaded, and as many as one is spread over."""
    gpus = 0.0
    for model in models:
        if isinstance(model, TransformersModelSettings | DiffusersSettings | OwnCodeSettings):
            gpus = max(gpus, settings.gpus_per_worker)
        if isinstance(model, VllmModelSettings):
            spread = model.tensor_parallel_size
            gpus = max(gpus, settings.gpus_per_worker, spread if spread > 1 else 0)
    return gpus
