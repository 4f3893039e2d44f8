"""The video store: what goes in comes out, and nothing damaged ever does."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.videos import CorruptVideo, Frames, VideoFile, VideoStore


def noise(count: int = 6, height: int = 32, width: int = 48, seed: int = 0) -> Frames:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def gradient(count: int = 9) -> Frames:
    row = np.linspace(0, 255, 64).astype(np.uint8)
    return np.stack([np.stack([np.roll(row, 4 * n)] * 48)[..., None].repeat(3, axis=2) for n in range(count)])


@settings(max_examples=20)
@given(pattern=st.lists(st.integers(0, 2), min_size=1, max_size=8), fps=st.sampled_from([1.0, 8.0, 23.976, 60.0]))
def test_webp_is_lossless_even_where_frames_repeat(
    tmp_path_factory: pytest.TempPathFactory, pattern: list[int], fps: float
) -> None:
    store = VideoStore(tmp_path_factory.getbasetemp() / "lossless")
    frames = np.concatenate([noise(1, seed=number) for number in pattern])
    video = store.put(frames, fps)
    assert np.array_equal(store.get(video.uri, video.sha256), frames)


def test_a_video_is_named_by_its_content(tmp_path: Path) -> None:
    store = VideoStore(tmp_path)
    video = store.put(noise(), 8.0)
    content = (tmp_path / video.uri).read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    assert video == VideoFile(f"{sha256[:2]}/{sha256[2:4]}/{sha256}.webp", sha256, len(content), 48, 32, 6, 8.0)
    assert store.put(noise(), 8.0) == video and store.is_intact(video.uri, video.bytes)
    assert len([file for file in tmp_path.rglob("*") if file.is_file()]) == 1


def test_mp4_is_close_and_read_by_any_store(tmp_path: Path) -> None:
    store = VideoStore(tmp_path, "mp4")
    video = store.put(gradient(), 23.976)
    assert video.uri.endswith(".mp4")
    found = VideoStore(tmp_path, "webp").get(video.uri, video.sha256)
    assert found.shape == gradient().shape and found.dtype == np.uint8
    assert np.abs(found.astype(int) - gradient()).mean() < 4


@pytest.mark.parametrize("format", ["webp", "mp4"])
@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:-10]), "is damaged"),
        (lambda file: file.write_bytes(b""), "is damaged: 0 bytes"),
        (
            lambda file: file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:]),
            "is damaged",
        ),
    ],
)
def test_damage_is_found_and_mended_by_storing_again(tmp_path: Path, format: Any, damage: Any, complaint: str) -> None:
    store = VideoStore(tmp_path, format)
    video = store.put(gradient(), 8.0)
    file = store.path(video.uri)
    damage(file)
    with pytest.raises(CorruptVideo, match=complaint) as caught:
        store.get(video.uri, video.sha256)
    assert video.uri in str(caught.value) and "\n" not in str(caught.value)
    again = store.put(gradient(), 8.0)
    assert store.get(again.uri, again.sha256).shape == gradient().shape
    if format == "webp":
        assert again == video


@pytest.mark.parametrize("suffix", ["webp", "mp4"])
def test_a_file_with_the_right_hash_that_is_no_video(tmp_path: Path, suffix: str) -> None:
    content = b"not a video"
    sha256 = hashlib.sha256(content).hexdigest()
    uri = f"{sha256[:2]}/{sha256[2:4]}/{sha256}.{suffix}"
    (tmp_path / uri).parent.mkdir(parents=True)
    (tmp_path / uri).write_bytes(content)
    with pytest.raises(CorruptVideo, match="cannot be decoded"):
        VideoStore(tmp_path).get(uri, sha256)


@pytest.mark.parametrize(
    "uri",
    ["../secret.webp", "/etc/passwd", "ab/cd/../../x.webp", "ab/cd/abcd.webp", "", f"aa/bb/{'c' * 64}.webp"],
)
def test_a_uri_never_leaves_the_store(tmp_path: Path, uri: str) -> None:
    store = VideoStore(tmp_path)
    for ask in (lambda: store.path(uri), lambda: store.get(uri, "0" * 64)):
        with pytest.raises(ValueError, match="no uri of a video store"):
            ask()


@pytest.mark.parametrize(
    ("frames", "fps", "complaint"),
    [
        (noise().astype(np.float32), 8.0, "float32"),
        (noise()[0], 8.0, "uint8"),
        (noise()[..., :1], 8.0, "uint8"),
        (noise()[:0], 8.0, "empty"),
        ([[1]], 8.0, "list"),
        (noise(), 0.0, "frames per second"),
        (noise(), float("nan"), "frames per second"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path: Path, frames: Any, fps: float, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        VideoStore(tmp_path).put(frames, fps)
    assert list(tmp_path.iterdir()) == []


def test_mp4_refuses_odd_sizes_and_stores_refuse_unknown_formats(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even height and width"):
        VideoStore(tmp_path, "mp4").put(noise(height=31), 8.0)
    with pytest.raises(ValueError, match="gif"):
        VideoStore(tmp_path, "gif")  # type: ignore[arg-type]


def test_only_old_unreferenced_files_are_removed(tmp_path: Path) -> None:
    store = VideoStore(tmp_path)
    used, unused, young = (store.put(noise(seed=seed), 8.0) for seed in range(3))
    leftover = store.path(unused.uri).with_name("x.webp.1.unfinished")
    leftover.write_bytes(b"half")
    for file in (store.path(used.uri), store.path(unused.uri), leftover):
        os.utime(file, (0, 0))
    assert store.delete_unreferenced([used.uri]) == 2
    assert store.path(used.uri).exists() and store.path(young.uri).exists()
    assert store.delete_unreferenced([used.uri], older_than_seconds=0) == 1
    assert [store.is_intact(video.uri, video.bytes) for video in (used, unused, young)] == [
        True,
        False,
        False,
    ]
