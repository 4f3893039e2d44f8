"""Can the home folder be written, and is there room for what will be made?

Belongs here: an estimate of bytes. Does not belong here: removing anything. Weights and checkpoints are known well;
clips go by their number and size, as far as the profile says them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ml import shapes
from ml.fine_tuning import TrainingSettings
from resources.doctor.files import writable
from resources.doctor.findings import Finding, fault, ok, warning
from resources.doctor.machine import Machine, existing_part
from resources.doctor.memory import ADAM, BYTES, MASTER, ModelShape, adapter_parameters
from resources.doctor.needs import local_models, trained_key
from resources.doctor.sizes import gib
from resources.doctor.weights import Weights, all_missing
from resources.pipeline_arguments import FRAMES
from resources.settings import BUNDLED, METHODS, Profile, TargetSettings
from storage.query_files import UnreadableFile, read_query_file

LEAST = 2**30
"""Bytes for tables, logs and reports. Ours."""
BITS_OF_A_PIXEL = 8
"""Of a stored clip: lossless WebP of filmed scenes keeps about a third of 24 bits. Ours, on the large side."""
STATES_AT_ONCE = 2
"""While a training saves a state, the one before it is still there."""
ROWS_COUNTED = 200_000


@dataclass(frozen=True)
class DiskNeed:
    """Bytes of trained models with the states to resume from, and of clips; None where they are unknown."""

    checkpoints: int | None
    clips: int | None


def check_home(profile: Profile) -> Iterator[Finding]:
    """Whether the home folder can be made and written."""
    home = profile.home
    if home.exists() and not home.is_dir():
        yield fault("home", f"{home} is a file", "name a folder in home (VPO_HOME)")
    elif writable(existing_part(home)):
        yield ok("home", f"{home} can be written")
    else:
        yield fault(
            "home", f"{home} cannot be written", "correct its rights, or name another folder in home (VPO_HOME)"
        )


def check_disk(profile: Profile, machine: Machine, weights: Mapping[str, Weights]) -> Iterator[Finding]:
    """Whether there is room for checkpoints and clips at home, and for downloads in the hub's cache."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    download = all_missing(weights, local_models(profile))
    need = disk_need(profile, weights)
    same = _same_disk(cache, profile.home)
    if download and not same:
        yield _compared("disk", f"downloads into {cache}", download, 0, machine.free_disk(cache))
    sure = LEAST + (need.checkpoints or 0) + (download if same else 0)
    shown = "checkpoints unknown" if need.checkpoints is None else f"checkpoints {gib(need.checkpoints)}"
    shown += f", downloads {gib(download)}" if download and same else ""
    shown += ", clips unknown" if need.clips is None else f", clips about {gib(need.clips)}"
    yield _compared("disk", f"{profile.home}: {shown}", sure, need.clips or 0, machine.free_disk(profile.home))


def _compared(key: str, shown: str, sure: int, perhaps: int, free: int) -> Finding:
    remedy = "make room, or name a folder on a larger disk (home, HF_HOME)"
    if free < sure:
        return fault(key, f"no room: {shown}; {gib(sure)} are needed and {gib(free)} free", remedy)
    if free < sure + perhaps:
        return warning(key, f"perhaps too little room: {shown}; {gib(free)} free", remedy)
    return ok(key, f"{shown}; {gib(free)} free")


def _same_disk(one: Path, other: Path) -> bool:
    return existing_part(one).stat().st_dev == existing_part(other).stat().st_dev


def disk_need(profile: Profile, weights: Mapping[str, Weights]) -> DiskNeed:
    """What one run of everything would leave behind."""
    trained = weights.get(trained_key(profile))
    trainings: list[TrainingSettings] = [profile.sft, *(target.dpo for target in profile.targets.values())]
    checkpoints: int | None = None
    if trained is not None and trained.parameters is not None:
        dtype = profile.trained_model.dtype
        checkpoints = sum(training_bytes(trained.parameters, trained.shape, one, dtype) for one in trainings)
    queries = count_queries(profile)
    clips: int | None = None
    if queries is not None:
        clips = sum(clip_bytes(target, queries, profile) for target in profile.targets.values())
    return DiskNeed(checkpoints, clips)


def training_bytes(parameters: int, shape: ModelShape | None, settings: TrainingSettings, dtype: str) -> int:
    """The trained model, and the states that its training keeps: trained weights with their optimizer."""
    model = parameters * BYTES[dtype]
    if settings.lora is None:
        return model + STATES_AT_ONCE * parameters * (MASTER + ADAM)
    adapters = adapter_parameters(shape, settings.lora) if shape else 0
    return model + STATES_AT_ONCE * adapters * (MASTER + ADAM)


def clip_bytes(target: TargetSettings, queries: int, profile: Profile) -> int:
    """Clips of candidates and of held-out queries. 0 where the profile does not say how large a clip is."""
    arguments: Mapping[str, object] = target.video_generator.arguments
    sizes = [arguments.get(name) for name in ("height", "width")]
    frames = next((arguments[name] for name in FRAMES if name in arguments), None)
    pixels = [size for size in (*sizes, frames) if isinstance(size, int)]
    if len(pixels) < 3:
        return 0
    curation = profile.queries.curation
    filmed = _limited(round(queries * curation.dpo_share), target.candidates.limit) * target.candidates.per_query
    methods = len(METHODS) + len(target.evaluation.others)
    held_out = _limited(round(queries * curation.test_share), target.evaluation.limit) * methods
    clips = 0 if target.feedback_from else filmed * target.seeds_per_prompt
    clips += held_out * target.evaluation.seeds_per_prompt if target.evaluated else 0
    return clips * math.prod(pixels) * BITS_OF_A_PIXEL // 8


def _limited(count: int, limit: int | None) -> int:
    return count if limit is None else min(count, limit)


def count_queries(profile: Profile) -> int | None:
    """Rows of the query files, at most ROWS_COUNTED; None where one cannot be read."""
    rows = 0
    for name in profile.queries.files:
        file = Path(shapes.__file__).parent / "shapes_queries.jsonl" if name == BUNDLED else Path(name)
        try:
            rows += sum(1 for _ in islice(read_query_file(file), ROWS_COUNTED))
        except (UnreadableFile, OSError):
            return None
    return min(rows, ROWS_COUNTED)
