"""Workers whose nodes have homes of their own: when they may, and what they are asked instead. Ray is not needed."""

import pickle
from pathlib import Path

import pytest

from resources.backend_settings import PixelRewardSettings, VideoServerSettings
from resources.compute import build_mapper
from resources.compute_settings import RayComputeSettings
from resources.outcome import Unavailable
from resources.ray_compute import RayMapper, raise_if_unfit
from resources.ray_worker import Probe, Worker
from storage.object_store import ObjectStoreAccess, ObjectStoreError
from storage.remote_files import RemoteFiles
from storage.videos import VideoStore

VIDEOS, CHECKPOINTS = (RemoteFiles(f"s3://vpo/{name}", ObjectStoreAccess()) for name in ("videos", "checkpoints"))
SERVER = VideoServerSettings(base_url="http://videos:8000/v1", model="some-model")
PACKED = pickle.dumps(VideoStore)


@pytest.mark.parametrize(
    ("places", "backend", "own"),
    [
        ((VIDEOS, CHECKPOINTS), PixelRewardSettings(), True),
        ((VIDEOS, None), PixelRewardSettings(), False),
        ((None, CHECKPOINTS), PixelRewardSettings(), False),
        ((VIDEOS, CHECKPOINTS), SERVER, False),  # the jobs that were paid for are remembered in the home
    ],
)
def test_nodes_may_have_homes_of_their_own_where_an_object_store_has_everything(
    places: tuple[RemoteFiles | None, ...], backend: PixelRewardSettings | VideoServerSettings, own: bool
) -> None:
    mapper = build_mapper(RayComputeSettings(), "videos", [backend], Path("/nowhere"), places)
    assert isinstance(mapper, RayMapper)
    assert mapper.own_folders is own
    assert mapper.places == tuple(place for place in places if place)


def test_a_worker_makes_its_own_home_and_asks_the_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(RemoteFiles, "look", lambda self, name: asked.append(str(self)))
    report = Worker(PACKED).report(Probe(tmp_path / "home" / ".probe", None, (VIDEOS, CHECKPOINTS)))
    raise_if_unfit(report)
    assert asked == ["s3://vpo/videos", "s3://vpo/checkpoints"]
    assert list(tmp_path.iterdir()) == [tmp_path / "home"]
    (tmp_path / "file").touch()
    blocked = Worker(PACKED).report(Probe(tmp_path / "file" / ".probe", None, (VIDEOS,)))
    with pytest.raises(Unavailable, match=r"file cannot be made there .*a VPO_HOME that it can write to"):
        raise_if_unfit(blocked)


def test_a_worker_without_the_store_s_keys_gets_no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: RemoteFiles, name: str) -> None:
        raise ObjectStoreError("AWS_ACCESS_KEY_ID is not set")

    monkeypatch.setattr(RemoteFiles, "look", refuse)
    report = Worker(PACKED).report(Probe(tmp_path / ".probe", None, (VIDEOS,)))
    with pytest.raises(Unavailable, match=r"AWS_ACCESS_KEY_ID is not set.*in the environment of `ray start`"):
        raise_if_unfit(report)
