"""Settings of a shared lake: what is taken, what is refused, and that no password is shown."""

from pathlib import Path

import pytest
import yaml

from resources.settings import PROFILES, SettingsError, load_profile
from resources.shared_storage import checkpoint_store, lake_place, video_store
from storage.faults import explained, is_unreachable
from storage.lake_place import FolderPlace, SharedPlace, check_catalog
from storage.object_store import ObjectLocation, ObjectStoreAccess, ObjectStoreError, duckdb_secret, keys, scrubbed

CATALOG = "postgresql://vpo@db.example:5433/lake"


def profile_with(folder: Path, **settings: object) -> Path:
    text = yaml.safe_load((PROFILES / "local.yaml").read_text()) | {"home": str(folder / "home")} | settings
    (folder / "profile.yaml").write_text(yaml.safe_dump(text))
    return folder / "profile.yaml"


def test_by_default_everything_lies_in_the_home(tmp_path: Path) -> None:
    profile = load_profile(str(profile_with(tmp_path)))
    place = lake_place(profile.home, profile.lake, profile.object_store)
    assert isinstance(place, FolderPlace)
    assert (place.folder, place.patience) == (profile.home / "lake", 0)
    videos = video_store(profile.home, profile.videos, profile.object_store)
    checkpoints = checkpoint_store(profile.home, profile.checkpoints, profile.object_store)
    assert (videos.root, videos.remote) == (profile.home / "videos", None)
    assert (checkpoints.root, checkpoints.remote) == (profile.home / "checkpoints", None)


def test_a_shared_lake_is_what_the_profile_or_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VPO_LAKE__CATALOG", CATALOG)
    monkeypatch.setenv("VPO_LAKE__DATA", "s3://bucket/some/lake/")
    file = profile_with(
        tmp_path,
        videos="s3://bucket/videos",
        checkpoints=str(tmp_path / "shared"),
        object_store={"endpoint_url": "http://minio:9000/", "patience_seconds": 5},
    )
    profile = load_profile(str(file))
    place = lake_place(profile.home, profile.lake, profile.object_store)
    assert isinstance(place, SharedPlace)
    assert (str(place), place.data) == ("db.example:5433/lake, s3://bucket/some/lake", "s3://bucket/some/lake/data/")
    assert place.access == ObjectStoreAccess("http://minio:9000", "us-east-1", 5.0)
    videos = video_store(profile.home, profile.videos, profile.object_store)
    assert (videos.root, str(videos.remote)) == (profile.home / "videos", "s3://bucket/videos")
    checkpoints = checkpoint_store(profile.home, profile.checkpoints, profile.object_store)
    assert (checkpoints.root, checkpoints.remote) == (tmp_path / "shared", None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lake": {"catalog": "mysql://a@b/c"}}, r"lake.catalog = 'mysql://a@b/c': must be sqlite or postgresql://"),
        ({"lake": {"catalog": "postgresql://a@b"}}, r"lake.catalog = .*must be sqlite or postgresql://"),
        ({"lake": {"catalog": "postgresql://a@b/c'; DROP"}}, "must not have quotes"),
        ({"lake": {"catalog": "postgresql://a@b:port/c"}}, r"must be sqlite or postgresql://"),
        ({"lake": {"catalog": "postgresql://vpo:geheim@b/c"}}, "lake.catalog = .*PGPASSWORD"),
        ({"lake": {"catalog": "postgresql://b/c?password=geheim"}}, "lake.catalog = .*PGPASSWORD"),
        ({"lake": {"data": "s3://bucket/x"}}, "lake: data needs a catalog in Postgres"),
        (
            {"lake": {"catalog": CATALOG, "data": "gs://bucket/x"}},
            "lake.data = 'gs://bucket/x': must be a folder or s3",
        ),
        ({"videos": "s3://bucket"}, "videos = 's3://bucket': must be a folder or s3://bucket/prefix"),
        ({"videos": "s3://bucket/../x"}, "videos = .*must be a folder or s3://bucket/prefix"),
        ({"checkpoints": ""}, "checkpoints = '': must be a folder"),
        ({"object_store": {"endpoint_url": "minio:9000"}}, "object_store.endpoint_url = 'minio:9000': must be http"),
        ({"object_store": {"endpoint_url": "http://key:geheim@minio"}}, "endpoint_url = .*without keys"),
        ({"object_store": {"key": "x"}}, "object_store.key is no setting"),
        ({"object_store": {"patience_seconds": 0}}, "object_store.patience_seconds = '0': must be greater than 0"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(tmp_path: Path, settings: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        load_profile(str(profile_with(tmp_path, **settings)))
    assert "geheim" not in str(refused.value)


def test_keys_come_from_the_environment_and_are_taken_out_of_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    with pytest.raises(ObjectStoreError, match="needs AWS_SECRET_ACCESS_KEY in the environment"):
        keys()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "se/cret+key")
    monkeypatch.setenv("PGPASSWORD", "pass word")
    shown = scrubbed("AKIAEXAMPLE se/cret+key se%2Fcret%2Bkey pass word pass+word")
    assert shown == "*** *** *** *** ***"
    sql, given = duckdb_secret(ObjectLocation("b-1", "p"), ObjectStoreAccess("http://minio:9000"))
    assert "se/cret+key" not in sql
    assert "se/cret+key" in given
    assert "minio:9000" in given


def test_a_server_that_is_away_is_told_from_one_that_refuses() -> None:
    away = 'connection to server at "127.0.0.1", port 1 failed: Connection refused'
    refused = 'connection to server at "db" failed: FATAL:  password authentication failed for user "vpo"'
    assert (is_unreachable(away), is_unreachable(refused)) == (True, False)
    assert "see that it runs" in explained(away)
    assert "PGPASSWORD" in explained(refused)


@pytest.mark.parametrize("address", [CATALOG, "postgres://b/c", "postgresql://u@[::1]:5432/c?sslmode=require"])
def test_addresses_of_a_catalog(address: str) -> None:
    check_catalog(address)
