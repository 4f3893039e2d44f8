"""Video files for tests of the service, and how they go into a request."""

import base64
import io
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]


def numbered_clip(count: int, size: tuple[int, int] = (32, 48)) -> Frames:
    """Frames whose brightness says which they are: frame n is 4n + 10."""
    clip = np.zeros((count, *size, 3), np.uint8)
    clip += (10 + 4 * np.arange(count, dtype=np.uint8))[:, None, None, None]
    return clip


def numbers_of(frames: Frames) -> list[int]:
    """Which frames of a numbered clip these are."""
    return [round((float(frame.mean()) - 10) / 4) for frame in frames]


def plain_clip(color: tuple[int, int, int], count: int = 8) -> Frames:
    """A clip of one colour."""
    return np.full((count, 32, 32, 3), color, np.uint8)


def mp4(clip: Frames, fps: float, **options: str) -> bytes:
    """A clip as h264 in mp4."""
    import av

    buffer = io.BytesIO()
    container: Any
    with av.open(buffer, mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "8", "preset": "veryfast", **options}
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def asked(content: bytes, query: str = "red", questions: list[str] | None = None) -> dict[str, Any]:
    """A clip as it stands in a request."""
    clip: dict[str, Any] = {"mp4": base64.b64encode(content).decode(), "query": query}
    return {**clip, "questions": questions} if questions is not None else clip
