"""The video store: clips as files named by their own hash.

Here: encoding, decoding, naming, checking and removing video files. The tables hold the references
(`uri`, `sha256`); which video belongs to which prompt is theirs to know. Where the files lie besides a folder of this
machine is `storage.remote_files`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from storage.remote_files import RemoteFiles

Frames: TypeAlias = npt.NDArray[np.uint8]
"""uint8, (frames, height, width, 3), RGB."""

VideoFormat: TypeAlias = Literal["webp", "mp4"]

_URI = re.compile(r"([0-9a-f]{2})/([0-9a-f]{2})/(\1\2[0-9a-f]{60})\.(webp|mp4)")
_UNFINISHED = ".unfinished"
_EXIF_DESCRIPTION = 0x010E


class CorruptVideo(Exception):
    """A video file is missing, damaged or not the one that was stored; says which."""


@dataclass(frozen=True)
class VideoFile:
    """A stored video. uri: path relative to the store, ``ab/cd/<sha256>.webp``. bytes: size of the file."""

    uri: str
    sha256: str
    bytes: int
    width: int
    height: int
    frames: int
    fps: float


class VideoStore:
    """Videos under `root`, in folders by the first two bytes of their hash.

    `format`: "webp" is lossless and suits tiny clips; "mp4" (h264, yuv420p, lossy) suits the rest and needs
    an even width and height. Either is read, whatever the format chosen for writing. The same frames at the
    same speed give the same webp file, so storing twice is storing once; for mp4 that is likely, not promised.

    `remote`: an object store that several machines share. It holds the videos then, under the same names, and `root`
    is a cache of this machine: it may be emptied at any time, and is filled with what is read. Every method that has to
    ask the object store raises ObjectStoreError if that is away.
    """

    def __init__(self, root: Path, format: VideoFormat = "webp", remote: RemoteFiles | None = None) -> None:
        if format not in ("webp", "mp4"):
            raise ValueError(f"unknown video format {format!r}: use webp or mp4")
        self.root = Path(root)
        self.format = format
        self.remote = remote

    def put(self, frames: Frames, fps: float) -> VideoFile:
        """Store a clip. `frames`: uint8 (frames, height, width, 3). ValueError for anything else."""
        _check(frames, fps, self.format)
        content = _encode_webp(frames, fps) if self.format == "webp" else _encode_mp4(frames, fps)
        sha256 = hashlib.sha256(content).hexdigest()
        uri = f"{sha256[:2]}/{sha256[2:4]}/{sha256}.{self.format}"
        _write(self.root / uri, content)
        if self.remote:  # always, so that it is young and delete_unreferenced leaves it for its new row
            self.remote.put(uri, content)
        count, height, width, _ = frames.shape
        return VideoFile(uri, sha256, len(content), int(width), int(height), int(count), float(fps))

    def get(self, uri: str, sha256: str) -> Frames:
        """The frames, uint8 (frames, height, width, 3).

        CorruptVideo if the file is missing, truncated or not of this hash."""
        file = self.path(uri)
        if self.remote and hashlib.sha256(file.read_bytes() if file.is_file() else b"").hexdigest() != sha256:
            file.unlink(missing_ok=True)  # the copy is damaged; the original may be well
            file = self.path(uri)
        try:
            content = file.read_bytes()
        except OSError as error:
            reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
            raise CorruptVideo(
                f"video {uri} {reason} in {self.remote or self.root}; a refresh renders it again"
            ) from error
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise CorruptVideo(
                f"video {uri} is damaged: {len(content)} bytes with sha256 {found[:12]}…, "
                f"expected {sha256[:12]}…; a refresh renders it again"
            )
        try:
            return _decode_webp(content) if file.suffix == ".webp" else _decode_mp4(content)
        except Exception as error:  # the codecs raise errors of many kinds
            raise CorruptVideo(f"video {uri} cannot be decoded: {error}") from error

    def path(self, uri: str) -> Path:
        """Where the file of a uri lies on this machine; it is fetched if it is not there yet. ValueError for what is no
        uri of a store, such as ``../x``."""
        file = self._file(uri)
        if self.remote and not file.exists():
            with suppress(FileNotFoundError):
                self.remote.fetch(uri, file)
        return file

    def _file(self, uri: str) -> Path:
        if not _URI.fullmatch(uri):
            raise ValueError(f"{uri[:200]!r} is no uri of a video store (ab/cd/<sha256>.webp)")
        return self.root / uri

    def is_intact(self, uri: str, size: int, sha256: str | None = None) -> bool:
        """Whether the file is there and has its size in bytes: a quick look. With `sha256` it is read, too,
        unless it lies in an object store, which answers for what it holds."""
        file = self._file(uri)
        if self.remote:
            found = self.remote.look(uri)
            return found is not None and found.size == size
        try:
            if file.stat().st_size != size:
                return False
            return sha256 is None or hashlib.sha256(file.read_bytes()).hexdigest() == sha256
        except OSError:
            return False

    def lost(self, files: Iterable[tuple[str, str, int, str | None]]) -> list[str]:
        """Keys of the files (key, uri, size, sha256 or None) that are not intact; see `is_intact`. An object store is
        asked for a list of all it has, not for each file."""
        if self.remote is None:
            return [key for key, uri, size, sha256 in files if not self.is_intact(uri, size, sha256)]
        wanted = list(files)
        sizes = {found.name: found.size for found in self.remote.list()} if wanted else {}
        return [key for key, uri, size, _ in wanted if sizes.get(uri) != size]

    def delete_unreferenced(self, uris_in_use: Collection[str], *, older_than_seconds: float = 3600.0) -> int:
        """Remove files that no row refers to, and unfinished ones. How many were removed.

        Files younger than `older_than_seconds` stay, since their rows may be about to be committed."""
        files = self.unreferenced(uris_in_use, older_than_seconds=older_than_seconds)
        return self.delete_files(files, older_than_seconds=older_than_seconds)

    def unreferenced(
        self, uris_in_use: Collection[str], *, older_than_seconds: float = 3600.0
    ) -> list[tuple[Path, int]]:
        """What `delete_unreferenced` would remove: files with their bytes."""
        in_use = set(uris_in_use)
        found = []
        if self.remote:
            return [
                (self.root / file.name, file.size)
                for file in self.remote.list()
                if _URI.fullmatch(file.name) and file.name not in in_use and file.is_older_than(older_than_seconds)
            ]
        for file in self.root.glob("??/??/*"):
            if file.relative_to(self.root).as_posix() not in in_use:
                size = _size_if_old(file, older_than_seconds)
                if size is not None:
                    found.append((file, size))
        return found

    def delete_files(self, files: Collection[tuple[Path, int]], *, older_than_seconds: float) -> int:
        """Remove files that `unreferenced` found; one that was stored again since is young, and stays."""
        removed = 0
        for file, _ in files:
            if self.remote:
                uri = file.relative_to(self.root).as_posix()
                there = self.remote.look(uri)
                if there is None or not there.is_older_than(older_than_seconds):
                    continue
                self.remote.delete(uri)
                file.unlink(missing_ok=True)
                removed += 1
            elif _size_if_old(file, older_than_seconds) is not None:
                file.unlink(missing_ok=True)
                removed += 1
        return removed


def _size_if_old(file: Path, seconds: float) -> int | None:
    """The file's size if it was last written or reused so long ago; else, or if it is gone, None."""
    try:
        status = file.stat()
    except FileNotFoundError:  # another process was faster
        return None
    return status.st_size if time.time() - status.st_mtime >= seconds else None


def _check(frames: Frames, fps: float, format: VideoFormat) -> None:
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        found = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
        raise ValueError(f"a video is an array of uint8 (frames, height, width, 3), not {found}")
    if 0 in frames.shape:
        raise ValueError(f"a video cannot be empty: {frames.shape}")
    if not 0 < fps < 1000:
        raise ValueError(f"frames per second must lie between 0 and 1000, not {fps}")
    if format == "mp4" and (frames.shape[1] % 2 or frames.shape[2] % 2):
        raise ValueError(f"mp4 needs an even height and width, not {frames.shape[1]}x{frames.shape[2]}: use webp")


def _write(file: Path, content: bytes) -> None:
    """Beside, then renamed: a file of this name is always whole. A damaged one is replaced."""
    if file.exists() and file.stat().st_size == len(content) and file.read_bytes() == content:
        os.utime(file)  # it is young again, so that delete_unreferenced leaves it for its new row
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.{os.getpid()}{_UNFINISHED}")
    try:
        with unfinished.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(file)
    except OSError:  # a full disk needs the space
        unfinished.unlink(missing_ok=True)
        raise


def _encode_webp(frames: Frames, fps: float) -> bytes:
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    milliseconds = max(1, round(1000 / fps))
    # The encoder merges equal frames in a row into one that is shown longer; the note lets us part them.
    note = Image.Exif()
    note[_EXIF_DESCRIPTION] = json.dumps({"frames": len(images), "milliseconds": milliseconds})
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        format="WEBP",
        save_all=True,
        append_images=images[1:],
        lossless=True,
        method=4,
        quality=50,
        duration=milliseconds,
        loop=0,
        exif=note,
    )
    return buffer.getvalue()


def _decode_webp(content: bytes) -> Frames:
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=["WEBP"]) as image:
        note = json.loads(image.getexif()[_EXIF_DESCRIPTION])
        shown: list[npt.NDArray[np.uint8]] = []
        repeats: list[int] = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            shown.append(np.asarray(image.convert("RGB")))
            repeats.append(round(image.info.get("duration", 0) / note["milliseconds"]))
    if len(shown) == 1:
        repeats = [note["frames"]]
    frames = np.repeat(np.stack(shown), repeats, axis=0)
    if len(frames) != note["frames"]:
        raise ValueError(f"it has {len(frames)} frames instead of {note['frames']}")
    return frames


def _encode_mp4(frames: Frames, fps: float) -> bytes:
    import av

    buffer = io.BytesIO()
    container: Any
    with av.open(buffer, mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # One thread and no path of its own for each processor: the same frames should give the same bytes.
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "16", "preset": "medium", "x264-params": "cpu-independent=1:sync-lookahead=0"}
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return buffer.getvalue()


def _decode_mp4(content: bytes) -> Frames:
    import av

    container: Any
    with av.open(io.BytesIO(content), mode="r", format="mp4") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
