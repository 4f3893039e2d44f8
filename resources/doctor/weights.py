"""Where the weights of a profile's models are, whether they can be had, and how large they are.

Belongs here: local folders, the hub's cache and the hub, read without loading a model. Does not belong here: whether
the weights fit anywhere (memory_checks.py, disk.py).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from resources.backend_settings import EMBEDDED, DiffusersSettings
from resources.doctor.findings import Finding, fault, ok, warning
from resources.doctor.memory import BYTES, ModelShape
from resources.doctor.needs import LocalModel, local_models
from resources.doctor.sizes import gib
from resources.embedded_language_model import FOLDER_NAME
from resources.embedded_video_models import EMBEDDED_VIDEO_MODELS
from resources.settings import Profile

HUB_TIMEOUT = 10.0
PIPELINE_INDEX = "model_index.json"
WEIGHTLESS = ("Tokenizer", "Scheduler", "Processor", "FeatureExtractor")
"""Parts of a pipeline whose classes have these words in their names have no weights."""


@dataclass(frozen=True)
class Part:
    """A component of a model: its weights' bytes as they are stored, and their number where it is known."""

    stored: int
    parameters: int | None = None

    def bytes_in(self, dtype: str) -> int:
        """Bytes once loaded in a dtype; as stored where the number of weights is unknown."""
        return self.stored if self.parameters is None else self.parameters * BYTES[dtype]


@dataclass(frozen=True)
class Weights:
    """What is known of a model. `missing`: bytes still to be downloaded. `shape`: of language models."""

    parts: Mapping[str, Part]
    shape: ModelShape | None = None
    missing: int = 0

    @property
    def stored(self) -> int:
        """Bytes on disk."""
        return sum(part.stored for part in self.parts.values())

    @property
    def parameters(self) -> int | None:
        """Number of weights, where it is known of every part."""
        counts = [part.parameters for part in self.parts.values()]
        return sum(count for count in counts if count is not None) if None not in counts else None

    def bytes_in(self, dtype: str) -> int:
        """Bytes once loaded."""
        return sum(part.bytes_in(dtype) for part in self.parts.values())


class Incomplete(Exception):
    """A folder that a model cannot be loaded from; says what it lacks."""


def survey(profile: Profile) -> tuple[dict[str, Weights], list[Finding]]:
    """What is known of each model, by its key in the profile, and a line for each different model."""
    known: dict[str, Weights] = {}
    findings: list[Finding] = []
    seen: dict[tuple[bool, str, str | None], Weights | None] = {}
    for key, settings in local_models(profile):
        # `embedded` is a language model in one place, and a video model in another.
        same = (isinstance(settings, DiffusersSettings), settings.model, settings.revision)
        if same not in seen:
            found, finding = _look(profile, key, settings)
            seen[same] = found
            findings.append(finding)
        weights = seen[same]
        if weights is not None:
            known[key] = weights
    return known, findings


def _look(profile: Profile, key: str, settings: LocalModel) -> tuple[Weights | None, Finding]:
    video = isinstance(settings, DiffusersSettings)
    read = read_pipeline if video else read_language_model
    if video and settings.model in EMBEDDED_VIDEO_MODELS:
        return _in_folder(key, EMBEDDED_VIDEO_MODELS[settings.model], read, settings.model)
    if settings.model == EMBEDDED:
        folder = profile.home / "models" / FOLDER_NAME
        if not folder.exists():
            return None, ok(key, "embedded: unpacked on first use")
        return _in_folder(key, folder, read, "embedded")
    folder = Path(settings.model).expanduser()
    if folder.is_dir():
        return _in_folder(key, folder, read, str(folder))
    return _on_the_hub(key, settings, read)


def _in_folder(key: str, folder: Path, read: Callable[[Path], Weights], name: str) -> tuple[Weights | None, Finding]:
    try:
        weights = read(folder)
    except Incomplete as error:
        return None, fault(key, f"{name}: {error}", "copy the model again, or name another one")
    return weights, ok(key, f"{name}: complete, {_size(weights)}")


def _size(weights: Weights) -> str:
    count = weights.parameters
    return gib(weights.stored) if count is None else f"{_count(count)} parameters, {gib(weights.stored)}"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} billion" if parameters >= 1e9 else f"{parameters / 1e6:.1f} million"


# ---- folders ---------------------------------------------------------------------------------------------------------


def read_language_model(folder: Path) -> Weights:
    """A folder as transformers saves it. Raises Incomplete."""
    config = _json(folder / "config.json")
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise Incomplete("it has no tokenizer")
    part = _part(folder)
    return Weights({"model": part}, shape=_shape(config, part.parameters))


def _shape(config: Mapping[str, Any], parameters: int | None) -> ModelShape | None:
    return ModelShape.of(config, parameters) if parameters else None


def read_pipeline(folder: Path) -> Weights:
    """A folder as diffusers saves it. Raises Incomplete."""
    index = _json(folder / PIPELINE_INDEX)
    parts: dict[str, Part] = {}
    for name, made_of in index.items():
        if not isinstance(made_of, list) or len(made_of) != 2 or made_of[1] is None:
            continue
        if not (folder / name).is_dir():
            raise Incomplete(f"its part {name} is missing")
        if not any(word in str(made_of[1]) for word in WEIGHTLESS):
            parts[name] = _part(folder / name)
    return Weights(parts)


def _part(folder: Path) -> Part:
    """The weights of one folder: safetensors, in one file or several, or else PyTorch's own files."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        names = sorted(set(_json(indexes[0]).get("weight_map", {}).values()))
        files = [folder / Path(str(name)).name for name in names]
    else:
        files = _without_variants(sorted(folder.glob("*.safetensors")))
    if not files:
        files = sorted(folder.glob("*.bin"))
        if not files:
            raise Incomplete(f"there are no weights in {folder.name}")
        return Part(sum(file.stat().st_size for file in files))
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise Incomplete(f"{len(absent)} of its {len(files)} weight files are missing, {absent[0]} among them")
    return Part(sum(file.stat().st_size for file in files), sum(_parameters_in(file) for file in files))


def _without_variants(files: Sequence[Path]) -> list[Path]:
    """`model.safetensors`, and not `model.fp16.safetensors` beside it."""
    plain = [file for file in files if file.name.count(".") == 1]
    return plain or list(files)


def _parameters_in(file: Path) -> int:
    """Number of weights, from the file's head."""
    from math import prod

    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            return sum(prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise Incomplete(f"{file.name} is damaged ({error})") from None


def _json(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise Incomplete(f"it has no {file.name}") from None
    except ValueError:
        raise Incomplete(f"its {file.name} is no JSON") from None
    if not isinstance(read, dict):
        raise Incomplete(f"its {file.name} is no JSON object")
    return read


# ---- the hub ---------------------------------------------------------------------------------------------------------


def _on_the_hub(key: str, settings: LocalModel, read: Callable[[Path], Weights]) -> tuple[Weights | None, Finding]:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, revision = settings.model, settings.revision
    cached = _cached(name, revision, read)
    if cached is not None:
        return cached, ok(key, f"{name}: in the hub's cache, {_size(cached)}")
    page = f"{constants.ENDPOINT}/{name}"
    api = HfApi()
    try:
        info = api.model_info(name, revision=revision, files_metadata=True, timeout=HUB_TIMEOUT)
        if info.gated:
            api.auth_check(name)
        weights = _described(api, info, settings)
    except HFValidationError:
        return None, fault(key, f"{name}: there is no such folder", "name a folder that is there, or a hub model")
    except GatedRepoError:
        return None, fault(
            key,
            f"{name} is gated, and you have no access to it",
            f"ask for access on {page}, then log in with `hf auth login` or set HF_TOKEN",
        )
    except RevisionNotFoundError:
        return None, fault(key, f"{name} has no revision {revision!r}", f"see {page}/commits/main")
    except RepositoryNotFoundError:
        return None, fault(
            key,
            f"{name}: no such folder, and no such model on {constants.ENDPOINT}, or none that you may see",
            "check its name; for a private model log in with `hf auth login` or set HF_TOKEN",
        )
    except OfflineModeIsEnabled:
        return None, fault(
            key,
            f"{name} is not in the hub's cache, and HF_HUB_OFFLINE is set",
            "unset HF_HUB_OFFLINE, or copy the model here and name its folder",
        )
    except Exception as error:  # whatever else a network can do
        return None, warning(
            key,
            f"{name} is not in the hub's cache, and {constants.ENDPOINT} could not be asked ({_said(error)})",
            "check the network, or copy the model here and name its folder",
        )
    if not weights.parts:
        return None, fault(key, f"{name} has no weights in safetensors", f"see {page}, and name another model")
    return weights, ok(key, f"{name}: on the hub, {_size(weights)} to download")


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:200] if lines else type(error).__name__


def _cached(name: str, revision: str | None, read: Callable[[Path], Weights]) -> Weights | None:
    """The model in the hub's cache, if all of it is there."""
    from huggingface_hub import snapshot_download

    try:
        return read(Path(snapshot_download(name, revision=revision, local_files_only=True)))
    except (OSError, ValueError, Incomplete):  # not there, or not all of it
        return None


def _described(api: Any, info: Any, settings: LocalModel) -> Weights:
    """What the hub says of a model's files."""
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    if isinstance(settings, DiffusersSettings):
        weights = Weights({name: Part(sum(files.values())) for name, files in _by_folder(sizes).items()})
        return replace(weights, missing=weights.stored)
    files = _safetensors({name: size for name, size in sizes.items() if "/" not in name})
    if not files:
        return Weights({})
    stored = sum(files.values())
    count = info.safetensors.total if info.safetensors else None
    shape = _shape(_hub_config(api, settings), count) if "config.json" in sizes else None
    return Weights({"model": Part(stored, count)}, shape=shape, missing=stored)


def _hub_config(api: Any, settings: LocalModel) -> dict[str, Any]:
    """The model's config.json, asked for once: a download would be tried again and again."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    address = hf_hub_url(settings.model, "config.json", revision=settings.revision, endpoint=api.endpoint)
    response = get_session().get(address, headers=build_hf_headers(), timeout=HUB_TIMEOUT, follow_redirects=True)
    response.raise_for_status()
    config = response.json()
    return config if isinstance(config, dict) else {}


def _by_folder(sizes: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Weight files of a pipeline's parts, by part."""
    folders: dict[str, dict[str, int]] = {}
    for name, size in sizes.items():
        folder, _, file = name.partition("/")
        if file and "/" not in file:
            folders.setdefault(folder, {})[file] = size
    found = {folder: _safetensors(files) for folder, files in folders.items()}
    return {folder: files for folder, files in found.items() if files}


def _safetensors(files: Mapping[str, int]) -> dict[str, int]:
    """The files that would be loaded: no variants, and no second copy in the format of the model's makers."""
    found = {n: s for n, s in files.items() if n.endswith(".safetensors") and not n.startswith("consolidated")}
    plain = {name: size for name, size in found.items() if name.count(".") == 1}
    return plain or found


def all_missing(weights: Mapping[str, Weights], keys: Iterator[tuple[str, LocalModel]]) -> int:
    """Bytes to download, each model once."""
    different = {(s.model, s.revision): weights[key].missing for key, s in keys if key in weights}
    return sum(different.values())
