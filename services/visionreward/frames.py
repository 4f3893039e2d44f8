"""From the bytes of a video to the frames that a model is shown.

Belongs here: decoding, and choosing frames by their time. Does not belong here: what a model does to frames.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from services.visionreward.interface import Frames, Sampling

MOST_PIXELS = 4096 * 4096
MOST_FRAMES = 20_000


class UnreadableVideo(ValueError):
    """Bytes that are no video, or not one that is decoded here."""


def chosen_frames(times: Sequence[float], sampling: Sampling) -> list[int]:
    """Positions of the frames to show, for the times of all frames in seconds from the first one, ascending.

    For each moment 0, 1, 2, ... (divided by `per_second`) the frame nearest to it, the earlier of two equally near
    ones, up to the moment that follows the last frame's, rounded, and `most` in all. This is how VisionReward was
    trained and is run by its authors; a short clip's last frame may come twice.
    """
    moments = min(round(times[-1] * sampling.per_second) + 1, sampling.most)
    every = np.asarray(times)
    return [int(np.abs(every - moment / sampling.per_second).argmin()) for moment in range(moments)]


def sampled_frames(content: bytes, sampling: Sampling) -> Frames:
    """The frames of a video file that a model is shown. Raises UnreadableVideo."""
    import av

    try:
        with av.open(io.BytesIO(content), mode="r", metadata_errors="ignore") as container:
            if not container.streams.video:
                raise UnreadableVideo("there is no video in it")
            stream = container.streams.video[0]
            if stream.codec_context.width * stream.codec_context.height > MOST_PIXELS:
                raise UnreadableVideo(f"its frames have more than {MOST_PIXELS} pixels")
            stamps = _stamps(container, stream)
            times = [float((stamp - stamps[0]) * stream.time_base) for stamp in stamps]
            wanted = [stamps[position] for position in chosen_frames(times, sampling)]
            pictures = _pictures(container, stream, set(wanted))
    except UnreadableVideo:
        raise
    except Exception as error:  # the codecs raise errors of many kinds
        raise UnreadableVideo(f"it cannot be decoded ({type(error).__name__}: {error})") from error
    missing = sum(stamp not in pictures for stamp in wanted)
    if missing:
        raise UnreadableVideo(f"it is damaged: {missing} of {len(wanted)} frames cannot be decoded")
    if len({picture.shape for picture in pictures.values()}) != 1:
        raise UnreadableVideo("its frames differ in size")
    return np.stack([pictures[stamp] for stamp in wanted])


def _stamps(container: Any, stream: Any) -> list[int]:
    """When each frame is shown, in units of the stream's time base, read without decoding."""
    stamps = []
    for packet in container.demux(stream):
        if packet.pts is None:
            continue  # the end
        stamps.append(packet.pts)
        if len(stamps) > MOST_FRAMES:
            raise UnreadableVideo(f"it has more than {MOST_FRAMES} frames")
    if not stamps:
        raise UnreadableVideo("it has no frames")
    container.seek(0)
    return sorted(stamps)


def _pictures(container: Any, stream: Any, wanted: set[int]) -> dict[int, Frames]:
    """The wanted frames, by when they are shown."""
    pictures: dict[int, Frames] = {}
    for frame in container.decode(stream):
        if frame.pts in wanted:
            pictures[frame.pts] = frame.to_ndarray(format="rgb24")
            if len(pictures) == len(wanted):
                break
    return pictures
