"""The published folders: a model that loads by itself, and a dataset that loads by itself.

Belongs here: the files of both, written beside and moved into place. Does not belong here: what a card says
(cards.py), or where a folder is sent (resources/hub.py).
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as parquet

from resources.backend_settings import PixelRewardSettings
from resources.embedded_video_models import EMBEDDED_VIDEO_MODELS
from resources.licences import Licence, of_dataset, of_model
from resources.optimizer_settings import OPTIMIZER_FILE, OptimizerSettings
from resources.prompt_optimizer import optimizer_settings
from resources.settings import TargetSettings
from resources.transformers_model import SAMPLED_FROM
from storage.checkpoints import RUNS_CODE
from storage.ids import content_id, sha256_of
from vpo_assets.alignment import video_model_id
from vpo_assets.platform import Platform
from vpo_assets.publishing.cards import dataset_card, model_card, published_columns
from vpo_assets.publishing.figures import evaluated_method, figures_markdown
from vpo_assets.publishing.lineage import Lineage, lineage_of

CARD = "README.md"
NOT_PUBLISHED = frozenset({"training.json", CARD, OPTIMIZER_FILE})
"""Files of a checkpoint that are not copied: its losses, and what is written anew."""
GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Published:
    """A folder that is ready for the hub."""

    kind: str
    folder: Path
    licence: Licence
    checkpoint_id: str

    @property
    def card(self) -> str:
        """Its README.md."""
        return (self.folder / CARD).read_text(encoding="utf-8")

    @property
    def files(self) -> dict[str, int]:
        """{relative path: bytes}"""
        files = (file for file in sorted(self.folder.rglob("*")) if file.is_file())
        return {file.relative_to(self.folder).as_posix(): file.stat().st_size for file in files}

    @property
    def content(self) -> str:
        """An id of every byte in it."""
        return content_id(*(part for name in self.files for part in (name, sha256_of(self.folder / name))))


def published_folder(platform: Platform, target: str, kind: str) -> Path:
    """Where a target's published model or dataset lies."""
    return platform.home / "published" / target / kind


def publish_model(platform: Platform, target: str, checkpoint_id: str) -> Published:
    """Write the model folder of a checkpoint, over the one that is there.

    Raises NothingEvaluated, BrokenCheckpoint, NotPublishable, NoLicence and LakeError before anything is written.
    """
    path, manifest = platform.checkpoints.load(checkpoint_id)
    method, rows = evaluated_method(platform, target, checkpoint_id)
    lineage = lineage_of(platform, checkpoint_id)
    settings = optimizer_settings(platform.profile, checkpoint_id, target)
    chosen = platform.target(target)
    card = model_card(
        lineage,
        settings,
        figures_markdown(rows, method),
        target,
        _video_model(platform, target),
        _reward_name(chosen),
    )

    def fill(folder: Path) -> None:
        for name in manifest.files:
            if name not in NOT_PUBLISHED and not name.lower().endswith(RUNS_CODE):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path / name, folder / name)
        _write_generation(folder / GENERATION, settings)
        (folder / OPTIMIZER_FILE).write_text(settings.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (folder / CARD).write_text(card, encoding="utf-8")

    folder = _replaced(published_folder(platform, target, "model"), fill)
    return Published("model", folder, of_model(lineage.base.licence, lineage.licences), checkpoint_id)


def publish_dataset(platform: Platform, target: str, checkpoint_id: str) -> Published:
    """Write the dataset folder of what a checkpoint learned from, over the one that is there. Raises as
    `publish_model`, but needs no evaluation."""
    lineage = lineage_of(platform, checkpoint_id)
    folder = _replaced(published_folder(platform, target, "dataset"), lambda folder: _write_dataset(lineage, folder))
    return Published("dataset", folder, of_dataset(lineage.licences), checkpoint_id)


def _write_dataset(lineage: Lineage, folder: Path) -> None:
    for part in lineage.parts:
        (folder / part.name).mkdir()
        rows = part.rows.select([name for name, _, _ in published_columns(part)]).combine_chunks()
        parquet.write_table(rows, folder / part.name / "train.parquet", compression="zstd")
    (folder / CARD).write_text(dataset_card(lineage), encoding="utf-8")


def _write_generation(file: Path, settings: OptimizerSettings) -> None:
    """The checkpoint's generation settings, sampling as the optimizer does."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    sampling = settings.sampling
    drawn: dict[str, object] = {"do_sample": False}
    if sampling.temperature > 0:
        drawn = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": SAMPLED_FROM,
        }
    for name in ("do_sample", "temperature", "top_p", "top_k"):
        known.pop(name, None)
    known |= {**drawn, "max_new_tokens": sampling.max_new_tokens}
    file.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def _replaced(final: Path, fill: Callable[[Path], None]) -> Path:
    """Fill a folder beside and put it in the place of the old one; what goes wrong leaves the old one."""
    final.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        fill(folder)
        folder.chmod(0o755)
        old = folder.with_name(f"{folder.name}-old")
        if final.exists():
            final.rename(old)
        folder.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return final


def _video_model(platform: Platform, target: str) -> str:
    """What its held-out prompts were filmed with."""
    model = platform.target(target).video_generator.model
    name = f"{model} of the shapes world that comes with the platform" if model in EMBEDDED_VIDEO_MODELS else model
    aligned = video_model_id(platform, target)
    return name if aligned is None else f"{name}, aligned by Diffusion-DPO ({aligned})"


def _reward_name(target: TargetSettings) -> str:
    reward = target.video_reward
    return "the pixel checklist of the shapes world" if isinstance(reward, PixelRewardSettings) else reward.model
