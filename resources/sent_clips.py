"""Clips as servers take them: sampled, as mp4 files, or as pictures.

Belongs here: choosing frames, and files that live as long as they are asked about. Does not belong here: the
encoding of videos (storage/videos.py), or the requests that clips are sent in.
"""

import base64
import io
import itertools
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

import numpy as np

from resources.video_generator import Clip
from storage.videos import VideoStore


def evenly_sampled(clip: Clip, frames: int, fps: float) -> tuple[Clip, float]:
    """At most so many frames, spread evenly from the first to the last, and the fps that keeps the clip's length."""
    count = len(clip)
    if count <= frames:
        return clip, fps
    chosen = np.linspace(0, count - 1, frames).round().astype(np.int64)
    return clip[chosen], fps * frames / count


def as_png(frame: Clip) -> bytes:
    """One frame, uint8 (height, width, 3), without loss."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def data_url(kind: str, content: bytes) -> str:
    """Content as an address that carries it; `kind` is a media type such as video/mp4."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


class SentClips:
    """Clips as mp4 files (h264), which are gone when the `with` block ends.

    The files lie in a folder of their own below `folder`, by default below the system's for temporary files. With
    `shared`, other users may read them: a server that runs as one of them.
    """

    def __init__(self, folder: Path | None = None, *, shared: bool = False) -> None:
        self._folder = folder
        self._shared = shared

    def __enter__(self) -> Self:
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        self._scratch = TemporaryDirectory(prefix="vpo-clips-", dir=self._folder)
        self._root = Path(self._scratch.name).resolve()
        if self._shared:
            self._root.chmod(0o755)
        self._numbers = itertools.count()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scratch.cleanup()

    def mp4(self, clip: Clip, fps: float) -> Path:
        """The clip as a file. h264 needs an even width and height: an odd last row or column is left out.

        Raises ValueError for what cannot be made a video.
        """
        import av

        if clip.ndim == 4 and min(clip.shape[1:3]) >= 2:
            clip = np.ascontiguousarray(clip[:, : clip.shape[1] // 2 * 2, : clip.shape[2] // 2 * 2])
        # A store for each: threads that write the same clip to one store at once get into each other's way.
        store = VideoStore(self._root / str(next(self._numbers)), format="mp4")
        try:
            return store.path(store.put(clip, fps).uri)
        except av.FFmpegError as error:
            raise ValueError(f"the clip {clip.shape} cannot be encoded: {error}") from error
