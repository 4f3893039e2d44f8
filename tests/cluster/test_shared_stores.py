"""Videos and checkpoints in an object store: two machines, damaged copies, outages."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from services.local_servers.running import LocalObjectStore
from storage.checkpoints import BrokenCheckpoint, CheckpointManifest, CheckpointStore
from storage.object_store import ObjectStoreAccess, ObjectStoreError
from storage.remote_files import RemoteFiles
from storage.videos import CorruptVideo, VideoStore
from tests.cluster.conftest import KEYS

pytestmark = pytest.mark.cluster


@pytest.fixture
def remote(access: ObjectStoreAccess, tmp_path: Path) -> RemoteFiles:
    return RemoteFiles(f"s3://lake/{tmp_path.name.replace('_', '-')}", access)


def clip(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)


def manifest(checkpoint_id: str = "sft-1") -> CheckpointManifest:
    return CheckpointManifest(id=checkpoint_id, stage="sft", base="b", recipe={}, inputs={"t": 3})


def fill(text: str) -> Callable[[Path], dict[str, float]]:
    def write(folder: Path) -> dict[str, float]:
        (folder / "more").mkdir()
        (folder / "training.json").write_text(text)
        (folder / "more" / "words.txt").write_text("some")
        return {"loss": 1.0}

    return write


def test_a_video_of_one_machine_is_read_on_another(remote: RemoteFiles, tmp_path: Path) -> None:
    here, there = VideoStore(tmp_path / "here", remote=remote), VideoStore(tmp_path / "there", remote=remote)
    video = here.put(clip(1), 4.0)
    assert there.is_intact(video.uri, video.bytes, video.sha256)
    assert np.array_equal(there.get(video.uri, video.sha256), clip(1))
    assert there.path(video.uri).read_bytes() == here.path(video.uri).read_bytes()
    there.path(video.uri).write_bytes(b"damaged")
    assert np.array_equal(there.get(video.uri, video.sha256), clip(1)), "the original was well"
    other = "a" * 64
    files = [("a", video.uri, video.bytes, None), ("b", video.uri, 1, None), ("c", f"aa/aa/{other}.webp", 1, None)]
    assert there.lost(files) == ["b", "c"]
    with pytest.raises(CorruptVideo, match="is missing in s3://lake/"):
        there.get(f"aa/aa/{other}.webp", other)


def test_videos_without_a_row_are_removed_from_the_object_store_once_they_are_old(
    remote: RemoteFiles, tmp_path: Path
) -> None:
    store = VideoStore(tmp_path, remote=remote)
    kept, gone = store.put(clip(1), 4.0), store.put(clip(2), 4.0)
    assert store.delete_unreferenced([kept.uri], older_than_seconds=3600) == 0
    assert [size for _, size in store.unreferenced([kept.uri], older_than_seconds=0)] == [gone.bytes]
    assert store.delete_unreferenced([kept.uri], older_than_seconds=0) == 1
    assert [file.name for file in remote.list()] == [kept.uri]
    assert not store.path(gone.uri).exists()


def test_a_checkpoint_of_one_machine_is_loaded_on_another(remote: RemoteFiles, tmp_path: Path) -> None:
    here, there = CheckpointStore(tmp_path / "here", remote), CheckpointStore(tmp_path / "there", remote)
    with pytest.raises(BrokenCheckpoint, match=r"there is no checkpoint sft-1 in s3://lake/.*there are: none"):
        there.load("sft-1")
    here.commit("sft-1", manifest(), fill("first"))
    assert there.exists("sft-1")
    assert [found.id for found in there.list()] == ["sft-1"]
    folder, found = there.load("sft-1")
    assert ((folder / "training.json").read_text(), found.metrics) == ("first", {"loss": 1.0})
    assert found == here.load("sft-1")[1]
    (folder / "training.json").write_text("other")
    with pytest.raises(BrokenCheckpoint, match="was altered"):
        there.load("sft-1")
    assert (there.commit("sft-1", manifest(), fill("never called")) / "training.json").read_text() == "first"


def test_two_machines_that_make_one_checkpoint_end_with_the_same(remote: RemoteFiles, tmp_path: Path) -> None:
    here, there = CheckpointStore(tmp_path / "here", remote), CheckpointStore(tmp_path / "there", remote)

    def slow(folder: Path) -> dict[str, float]:
        here.commit("sft-1", manifest(), fill("of here"))
        return fill("of there")(folder)

    there.commit("sft-1", manifest(), slow)
    assert [(store.load("sft-1")[0] / "training.json").read_text() for store in (here, there)] == ["of here"] * 2


def test_an_upload_that_was_broken_off_is_no_checkpoint_and_is_finished_later(
    remote: RemoteFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = CheckpointStore(tmp_path / "here", remote), CheckpointStore(tmp_path / "there", remote)
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):

        def die(*_: object) -> bool:
            raise KeyboardInterrupt

        killed.setattr(RemoteFiles, "put_new", die)
        here.commit("sft-1", manifest(), fill("x"))
    assert not there.exists("sft-1") and not here.exists("sft-1")
    here.commit("sft-1", manifest(), fill("never called"))
    assert there.load("sft-1")[1].id == "sft-1"


def test_outages_are_waited_for_and_then_named_and_are_no_damage(
    remote: RemoteFiles, object_store: LocalObjectStore, tmp_path: Path
) -> None:
    store = VideoStore(tmp_path / "cache", remote=remote)
    object_store.begin_outage()
    threading.Timer(1.5, object_store.end_outage).start()
    video = store.put(clip(3), 4.0)
    shutil.rmtree(tmp_path / "cache")
    impatient = RemoteFiles(remote.location.url, ObjectStoreAccess(object_store.url, patience=0.5))
    store = VideoStore(tmp_path / "cache", remote=impatient)
    object_store.begin_outage()
    try:
        for ask in (
            lambda: store.get(video.uri, video.sha256),
            lambda: store.is_intact(video.uri, video.bytes),
            lambda: store.lost([("a", video.uri, video.bytes, None)]),
            lambda: CheckpointStore(tmp_path / "c", impatient).exists("sft-1"),
        ):
            with pytest.raises(ObjectStoreError, match=r"503|Slow Down") as failed:
                ask()
            assert not [secret for secret in KEYS.values() if secret in str(failed.value)]
    finally:
        object_store.end_outage()
    assert store.is_intact(video.uri, video.bytes)
