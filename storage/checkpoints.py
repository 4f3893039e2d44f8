"""The checkpoint store: trained models as folders with a manifest, whole or not there at all.

Here: writing a folder beside and renaming it into place, and telling whether a folder is what its manifest
says. What a checkpoint's files are is up to whoever trains it; which checkpoint is best is the evaluation's
to say. Where they lie besides a folder of this machine is `storage.remote_files`.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storage.ids import sha256_of
from storage.remote_files import RemoteFiles

MANIFEST = "manifest.json"
MANIFESTS = "manifests"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_UNFINISHED = ".unfinished-"
RUNS_CODE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".py", ".so")
"""Endings of files that libraries unpickle or import. A checkpoint of ours has none of them."""
LONGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library."""


class BrokenCheckpoint(Exception):
    """A checkpoint is missing, incomplete or altered; says which file and what to do."""


class CheckpointFile(BaseModel):
    """Hash and size of one file of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str
    bytes: int


class TrainingFile(BaseModel):
    """The file a checkpoint was trained on: which rows of the lake, and the bytes they were written as.

    writer: the library whose release decides the bytes beside the rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    table: str
    snapshot: int
    columns: tuple[str, ...]
    rows: int
    bytes: int
    sha256: str
    writer: str


class CheckpointManifest(BaseModel):
    """What a checkpoint is and where it comes from. `files`, `metrics` and `made_at` are filled in by the
    store when it is committed.

    stage: sft or dpo. target: the video model, None for the trunk. base: the model or checkpoint it was
    trained from. recipe: everything that decided it. inputs: {table: lake snapshot}. training_file: None in
    manifests of before it was recorded. files: {relative path: hash and size}.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    stage: str
    target: str | None = None
    base: str
    recipe: dict[str, Any]
    inputs: dict[str, int] = Field(default_factory=dict)
    training_file: TrainingFile | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, CheckpointFile] = Field(default_factory=dict)
    made_at: datetime.datetime | None = None


class CheckpointStore:
    """Checkpoints under `root`, each a folder named by its id.

    `remote`: an object store that several machines share. It holds the checkpoints then, and `root` is this machine's
    copy of those that it made or read: trainers and models need files. In the object store a checkpoint's files are
    named by their hash (``files/ab/<sha256>``) and come first; its manifest (``manifests/<id>.json``) comes last, so
    that what has a manifest is whole. If two machines make one checkpoint, the first manifest counts on both. Every
    method that has to ask the object store raises ObjectStoreError if that is away.
    """

    def __init__(self, root: Path, remote: RemoteFiles | None = None) -> None:
        self.root = Path(root)
        self.remote = remote

    def commit(
        self, checkpoint_id: str, manifest: CheckpointManifest, fill: Callable[[Path], Mapping[str, Any]]
    ) -> Path:
        """Make a checkpoint: `fill` writes its files into the folder it is given and returns its metrics.

        The folder appears under its id only when everything is on the disk; a crash leaves nothing that looks
        like a checkpoint. One that is there and whole is kept and `fill` is not called; a broken one is
        replaced. ValueError for an id that is no plain name or is not the manifest's.
        """
        final = self._folder(checkpoint_id)
        if manifest.id != checkpoint_id:
            raise ValueError(f"the manifest is of checkpoint {manifest.id!r}, not {checkpoint_id!r}")
        if self.remote and not self._is_whole(checkpoint_id):
            self._fetch(checkpoint_id, again=True)  # the copy here is damaged; the original may be well
        if self._is_whole(checkpoint_id):
            self._upload(checkpoint_id)
            return self._folder(checkpoint_id)
        self.root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{_UNFINISHED}{checkpoint_id}-", dir=self.root))
        try:
            metrics = dict(fill(folder))
            files = _hashed_files(folder)
            if not files:
                raise ValueError(f"checkpoint {checkpoint_id}: fill wrote no file")
            complete = manifest.model_copy(
                update={"metrics": metrics, "files": files, "made_at": datetime.datetime.now(datetime.UTC)}
            )
            _write_durably(folder / MANIFEST, complete.model_dump_json(indent=2))
            folder.chmod(0o755)  # mkdtemp makes folders that only their owner may read
            self._put_in_place(folder, final, checkpoint_id)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._upload(checkpoint_id)
        return final

    def exists(self, checkpoint_id: str) -> bool:
        """Whether a checkpoint of this id was completed. A quick look; `load` checks the files."""
        if self.remote:
            return self.remote.look(_manifest_name(self._folder(checkpoint_id).name)) is not None
        return (self._folder(checkpoint_id) / MANIFEST).is_file()

    def path(self, checkpoint_id: str) -> Path:
        """Its folder on this machine, whether it is there or not; it is fetched if another machine made it. ValueError
        for an id that is no plain name."""
        self._fetch(checkpoint_id)
        return self._folder(checkpoint_id)

    def load(self, checkpoint_id: str, verify: bool = True) -> tuple[Path, CheckpointManifest]:
        """Folder and manifest. BrokenCheckpoint if a file is missing or (with `verify`, which reads them all)
        altered, if a .safetensors file is none, and if a pickle lies in the folder, whoever put it there."""
        folder = self.path(checkpoint_id)
        manifest = self._manifest(checkpoint_id)
        executable = _executable_file(folder)
        if executable:
            raise BrokenCheckpoint(
                f"checkpoint {checkpoint_id}: {executable} is of a kind that runs code when it is loaded; weights are "
                f"taken from .safetensors only. Remove that file; {_remedy(folder)}"
            )
        for name, expected in manifest.files.items():
            problem = _problem(folder, name, expected, verify=verify) or _wrong_header(folder / name)
            if problem:
                raise BrokenCheckpoint(f"checkpoint {checkpoint_id}: {name} {problem}; {_remedy(folder)}")
        return folder, manifest

    def lineage(self, checkpoint_id: str) -> Iterator[CheckpointManifest]:
        """The manifests of a checkpoint and of those it was trained from, as far as they are there and whole at a quick
        look. The last one's `base` is a model's name, or a checkpoint that is not."""
        seen: set[str] = set()
        while checkpoint_id not in seen:
            seen.add(checkpoint_id)
            try:
                _, manifest = self.load(checkpoint_id, verify=False)
            except (BrokenCheckpoint, ValueError):  # ValueError: the name of a model, such as org/model
                return
            yield manifest
            checkpoint_id = manifest.base

    def list(self) -> list[CheckpointManifest]:
        """Manifests of all completed checkpoints, the oldest first."""
        manifests = [self._manifest(checkpoint_id) for checkpoint_id in self._ids()]
        return sorted(manifests, key=lambda manifest: (str(manifest.made_at), manifest.id))

    def manifest(self, checkpoint_id: str) -> CheckpointManifest:
        """The manifest alone, whatever became of the files. Raises BrokenCheckpoint if it cannot be read."""
        return self._manifest(checkpoint_id)

    def unfinished(self, *, older_than_seconds: float) -> Sequence[tuple[Path, str]]:
        """Folders that a broken-off commit left, with the ids they were to have; whether anybody still fills one is
        for the caller to know."""
        found = []
        for folder in self.root.glob(f"{_UNFINISHED}*"):
            checkpoint_id = folder.name.removeprefix(_UNFINISHED).rpartition("-")[0]
            newest = max((path.lstat().st_mtime for path in (folder, *folder.rglob("*"))), default=0.0)
            if _ID.fullmatch(checkpoint_id) and time.time() - newest >= older_than_seconds:
                found.append((folder, checkpoint_id))
        return found

    def remove_unfinished(self, folder: Path) -> None:
        """Remove a folder that `unfinished` found."""
        if folder.parent != self.root or not folder.name.startswith(_UNFINISHED):
            raise ValueError(f"{folder} is no unfinished checkpoint of {self.root}")
        shutil.rmtree(folder, ignore_errors=True)

    def _ids(self) -> Sequence[str]:
        """Ids of the completed checkpoints; folders that are being filled have names that are no ids."""
        if self.remote:
            names = (Path(file.name).stem for file in self.remote.list(MANIFESTS))
            return sorted(name for name in names if _ID.fullmatch(name))
        folders = (file.parent.name for file in self.root.glob(f"*/{MANIFEST}"))
        return sorted(name for name in folders if _ID.fullmatch(name))

    def _folder(self, checkpoint_id: str) -> Path:
        if not _ID.fullmatch(checkpoint_id):
            raise ValueError(f"{checkpoint_id[:200]!r} cannot name a checkpoint: use letters, digits, _ . -")
        return self.root / checkpoint_id

    def _manifest(self, checkpoint_id: str) -> CheckpointManifest:
        folder = self._folder(checkpoint_id)
        if self.remote and not (folder / MANIFEST).exists():
            return self._remote_manifest(checkpoint_id)
        if not folder.is_dir():
            known = ", ".join(self._ids()) or "none"
            raise BrokenCheckpoint(f"there is no checkpoint {checkpoint_id} in {self.root}; there are: {known}")
        try:
            manifest = CheckpointManifest.model_validate_json((folder / MANIFEST).read_bytes())
        except FileNotFoundError as error:
            raise BrokenCheckpoint(f"checkpoint {checkpoint_id}: {MANIFEST} is missing; {_remedy(folder)}") from error
        except (OSError, ValidationError) as error:
            raise BrokenCheckpoint(
                f"checkpoint {checkpoint_id}: {MANIFEST} cannot be read "
                f"({str(error).splitlines()[0]}); {_remedy(folder)}"
            ) from error
        if manifest.id != checkpoint_id:
            raise BrokenCheckpoint(
                f"checkpoint {checkpoint_id}: {MANIFEST} is that of {manifest.id}; {_remedy(folder)}"
            )
        return manifest

    def ids(self) -> Sequence[str]:
        """Ids of the completed checkpoints, and on one machine the names of other folders beside them."""
        return self._ids() if self.remote else sorted(folder.name for folder in self.root.glob("*"))

    # ---- the copy in an object store -----------------------------------------------------------------------

    def _upload(self, checkpoint_id: str) -> None:
        """Files first, then the manifest. Whoever comes second takes the first one's files."""
        if self.remote is None:
            return
        folder = self._folder(checkpoint_id)
        manifest = self._manifest(checkpoint_id)
        if self.exists(checkpoint_id):
            if self._remote_manifest(checkpoint_id) != manifest:
                self._fetch(checkpoint_id, again=True)
            return
        for name, file in manifest.files.items():
            there = self.remote.look(_file_name(file))
            if there is None or there.size != file.bytes:
                self.remote.put(_file_name(file), folder / name)
        if not self.remote.put_new(_manifest_name(checkpoint_id), (folder / MANIFEST).read_bytes()):
            self._fetch(checkpoint_id, again=True)

    def _fetch(self, checkpoint_id: str, *, again: bool = False) -> None:
        """Bring a checkpoint of another machine here, whole or not at all."""
        folder = self._folder(checkpoint_id)
        if self.remote is None or (folder.exists() and not again):
            return
        try:
            manifest = self._remote_manifest(checkpoint_id)
        except BrokenCheckpoint:  # there is none: whoever needs it will say so
            return
        self.root.mkdir(parents=True, exist_ok=True)
        copy = Path(tempfile.mkdtemp(prefix=f"{_UNFINISHED}{checkpoint_id}-", dir=self.root))
        try:
            for name, file in manifest.files.items():
                if not (copy / name).resolve().is_relative_to(copy.resolve()):
                    raise BrokenCheckpoint(f"checkpoint {checkpoint_id}: {name} lies outside the checkpoint's folder")
                self._fetch_file(checkpoint_id, name, file, copy / name)
            _write_durably(copy / MANIFEST, manifest.model_dump_json(indent=2))
            copy.chmod(0o755)
            if again:
                shutil.rmtree(folder, ignore_errors=True)
            self._put_in_place(copy, folder, checkpoint_id)
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    def _fetch_file(self, checkpoint_id: str, name: str, expected: CheckpointFile, file: Path) -> None:
        assert self.remote is not None
        try:
            self.remote.fetch(_file_name(expected), file)
        except FileNotFoundError as error:
            raise BrokenCheckpoint(
                f"checkpoint {checkpoint_id}: {name} is missing in {self.remote}; restore {_file_name(expected)} there "
                f"from a copy, or remove {_manifest_name(checkpoint_id)} there and materialize its asset again"
            ) from error

    def _remote_manifest(self, checkpoint_id: str) -> CheckpointManifest:
        assert self.remote is not None
        try:
            manifest = CheckpointManifest.model_validate_json(self.remote.read(_manifest_name(checkpoint_id)))
        except FileNotFoundError as error:
            known = ", ".join(self._ids()) or "none"
            raise BrokenCheckpoint(
                f"there is no checkpoint {checkpoint_id} in {self.remote}; there are: {known}"
            ) from error
        except ValidationError as error:
            raise BrokenCheckpoint(
                f"checkpoint {checkpoint_id}: {_manifest_name(checkpoint_id)} in {self.remote} cannot be read "
                f"({str(error).splitlines()[0]})"
            ) from error
        if manifest.id != checkpoint_id:
            raise BrokenCheckpoint(
                f"checkpoint {checkpoint_id}: its manifest in {self.remote} is that of {manifest.id}"
            )
        return manifest

    def _is_whole(self, checkpoint_id: str) -> bool:
        try:
            self.load(checkpoint_id)
        except BrokenCheckpoint:
            return False
        return True

    def _put_in_place(self, folder: Path, final: Path, checkpoint_id: str) -> None:
        if final.exists() and not self._is_whole(checkpoint_id):
            shutil.rmtree(final)
        try:
            folder.rename(final)
        except OSError:
            # Another process finished the same checkpoint in the meantime: one of them is enough.
            if not self._is_whole(checkpoint_id):
                raise
        _sync(self.root)


def _manifest_name(checkpoint_id: str) -> str:
    return f"{MANIFESTS}/{checkpoint_id}.json"


def _file_name(file: CheckpointFile) -> str:
    return f"files/{file.sha256[:2]}/{file.sha256}"


def _remedy(folder: Path) -> str:
    return f"remove the folder {folder} and materialize its asset again, or restore it from a copy"


def _hashed_files(folder: Path) -> dict[str, CheckpointFile]:
    """Every file but the manifest, by relative path; all of them are on the disk when this returns."""
    files = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_symlink():
            raise ValueError(f"a checkpoint holds plain files, but {name} is a link")
        if file.is_file() and name != MANIFEST:
            _sync(file)
            files[name] = CheckpointFile(sha256=sha256_of(file), bytes=file.stat().st_size)
        elif file.is_dir():
            _sync(file)
    return files


def _problem(folder: Path, name: str, expected: CheckpointFile, *, verify: bool) -> str | None:
    """What is wrong with one file, or None."""
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        return "lies outside the checkpoint's folder"
    if not file.is_file():
        return "is missing"
    size = file.stat().st_size
    if size != expected.bytes:
        return f"has {size} bytes instead of {expected.bytes}"
    if verify and sha256_of(file) != expected.sha256:
        return "was altered (its sha256 is not the manifest's)"
    return None


def _executable_file(folder: Path) -> str | None:
    """The name of a file that a library might unpickle or import, or None."""
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")))
    return next((name for name in names if name.lower().endswith(RUNS_CODE)), None)


def _wrong_header(file: Path) -> str | None:
    """What is wrong with the header of a .safetensors file (its length, JSON, offsets within the file), or None."""
    if file.suffix != ".safetensors":
        return None
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(size - 8, LONGEST_HEADER):
            return "is no safetensors file (the length of its header is wrong)"
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            whole = max(ends, default=0) == size - 8 - length
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return "is no safetensors file (its header cannot be read)"
    return None if whole else "is no whole safetensors file (its header speaks of another size)"


def _write_durably(file: Path, text: str) -> None:
    with file.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
