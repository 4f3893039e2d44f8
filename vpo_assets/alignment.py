"""A target whose video model is aligned itself: pairs of films, and Diffusion-DPO of its transformer on them.

Belongs here: the assets video_pairs and video_model, and which checkpoint a target films with. Does not belong here:
filming (filming.py), the selection (ml/video_pairs.py), or the training (ml/diffusion_dpo.py).
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from dagster import AssetsDefinition

from ml.alignment_settings import AlignmentSettings
from ml.video_pairs import select_video_pairs
from resources.backend_settings import DiffusersSettings
from resources.settings import Profile
from storage.ids import content_id
from storage.recipe import JSON
from storage.tables import QUERIES, VIDEO_PAIRS
from vpo_assets.platform import Platform
from vpo_assets.steps import RowStep, SetStep, own_columns
from vpo_assets.table_assets import set_asset
from vpo_assets.training import ALIGNED, Training, checkpoint_asset

FILMS = "examples/films"
"""Within the states of a training, which are freed when it is done."""


def is_aligned(profile: Profile, target: str) -> bool:
    """Whether a target of the profile has its video model aligned before it films."""
    settings = profile.targets.get(target)
    return settings is not None and settings.alignment is not None


def video_model_training(target: str) -> Training:
    """How a target's aligned transformer comes about."""
    return Training(
        stage=ALIGNED,
        target=target,
        data=VIDEO_PAIRS.at(target),
        base=lambda platform: _base(platform, target),
        base_name=lambda platform: _base_name(platform, target),
        settings=lambda platform: _settings(platform, target),
        dtype=lambda platform: _generator(platform, target).dtype,
        parts=lambda platform: _text_arguments(platform, target),
        job_fields=partial(_job_fields, target=target),
    )


def video_model_id(platform: Platform, target: str) -> str | None:
    """The checkpoint of the transformer that a target films with, trained or not; None for the video model as it is."""
    return video_model_training(target).checkpoint_id(platform) if is_aligned(platform.profile, target) else None


def untrained_video_model(platform: Platform, target: str) -> Iterator[str]:
    """One line if a target is to film with a transformer that is not trained yet."""
    checkpoint_id = video_model_id(platform, target)
    if checkpoint_id is not None and not platform.checkpoints.exists(checkpoint_id):
        yield (
            f"the video model {checkpoint_id} that the present pairs and settings ask for is not trained yet: "
            f"materialize {target}/video_model first"
        )


def video_pairs_step(target: str, videos: RowStep, rewards: RowStep) -> SetStep:
    """The step of a target's pairs of films, from another target's films and their rewards."""
    return SetStep(
        table=VIDEO_PAIRS.at(target),
        recipe=lambda platform: {"pairs": _settings(platform, target).pairs.model_dump(mode="json")},
        work=lambda platform, _: _video_pairs(platform, target, videos, rewards),
        reads=(videos, rewards),
    )


def alignment_assets(step: SetStep, training: Training, source: str) -> tuple[AssetsDefinition, ...]:
    """The assets of the pairs, and of what learns from them; `source` is the target whose films they are."""
    return (
        set_asset(
            step,
            description="Pairs of films of one text, better scored over worse scored, for Diffusion-DPO.",
            deps=[f"{source}/video_rewards", "queries"],
        ),
        checkpoint_asset(
            training,
            description="The video model's transformer after Diffusion-DPO on pairs of its films.",
            deps=[f"{training.target}/video_pairs"],
        ),
    )


def _settings(platform: Platform, target: str) -> AlignmentSettings:
    settings = platform.target(target).alignment
    assert settings is not None
    return settings


def _generator(platform: Platform, target: str) -> DiffusersSettings:
    settings = platform.target(target).video_generator
    assert isinstance(settings, DiffusersSettings)
    return settings


def _base(platform: Platform, target: str) -> str:
    """Folder or hub name of the video model."""
    from resources.diffusers_generator import pipeline_source

    return pipeline_source(_generator(platform, target))


def _base_name(platform: Platform, target: str) -> str:
    """The same, with what changes when its weights do."""
    identity = platform.video_generators[target].identity()
    return f"{identity.get('model')}@{identity.get('revision')}"


def _text_arguments(platform: Platform, target: str) -> dict[str, JSON]:
    """What decides how a text is read, beside the model."""
    arguments = _generator(platform, target).arguments
    return {"text": {name: arguments[name] for name in ("max_sequence_length",) if name in arguments}}


def _job_fields(platform: Platform, data: Path, states: Path, *, target: str) -> dict[str, Any]:
    """What a training job has for an alignment alone; the films are laid down where the training process finds them."""
    length = _generator(platform, target).arguments.get("max_sequence_length")
    return {
        "revision": _generator(platform, target).revision,
        "clips": _lay_down_films(platform, data, states / FILMS),
        "max_sequence_length": length if isinstance(length, int) else None,
    }


def _lay_down_films(platform: Platform, data: Path, folder: Path) -> Path:
    """Each film of the pairs in a training file as <video id>.npy. One that is there is left: the id is its content's.

    Raises CorruptVideo for a film whose file is gone or damaged.
    """
    import pyarrow.parquet as parquet

    folder.mkdir(parents=True, exist_ok=True)
    for pair in parquet.read_table(data).to_pylist():
        for side in ("chosen", "rejected"):
            file = folder / f"{pair[f'{side}_video_id']}.npy"
            if file.exists():
                continue
            beside = file.with_suffix(".unfinished")
            with beside.open("wb") as stream:
                np.save(stream, platform.videos.get(pair[f"{side}_uri"], pair[f"{side}_sha256"]), allow_pickle=False)
            beside.replace(file)
    return folder


def _video_pairs(platform: Platform, target: str, videos: RowStep, rewards: RowStep) -> tuple[pa.Table, dict[str, Any]]:
    """Of films that were made several times, the present ones."""
    films = platform.lake.query(
        "SELECT v.video_id, v.query_id, q.query, v.prompt_id, v.prompt, v.uri, v.sha256, r.score "
        f"FROM {videos.present(platform)} AS v JOIN {rewards.present(platform)} AS r USING (video_id) "
        f"JOIN {QUERIES.qualified} AS q ON q.query_id = v.query_id ORDER BY v.video_id"
    ).to_pylist()
    pairs = select_video_pairs(films, _settings(platform, target).pairs)
    for pair in pairs:
        pair["pair_id"] = content_id(pair["prompt"], pair["chosen_video_id"], pair["rejected_video_id"])
    counts = [{"what": "films", "count": len(films)}, {"what": "pairs", "count": len(pairs)}]
    return own_columns(VIDEO_PAIRS, pairs), {"counts": counts}
