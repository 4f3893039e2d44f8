"""`vpo publish` and the assets behind it: a dry run by default, a push when asked, nothing by a run of everything."""

from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from dagster import AssetKey, DagsterInstance

from tests.assets.conftest import World, errors_of, metadata_of
from tests.conftest import Vpo
from tests.publishing.conftest import best
from tests.resources.stand_in_hub import TOKEN, StandInHub
from vpo_assets.definitions import EVERYTHING
from vpo_assets.publishing.assets import ON_REQUEST

Make = Callable[..., World]
pytestmark = pytest.mark.slow


@pytest.fixture
def here(world: Make, vpo: Vpo, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose profile the command line takes."""
    monkeypatch.delenv("VPO_HOME")
    made = world()
    monkeypatch.setenv("VPO_PROFILE", str(made.file))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return made


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> StandInHub:
    stand_in = StandInHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", stand_in)
    return stand_in


def test_by_default_it_says_what_it_would_send(here: World, vpo: Vpo, there: StandInHub) -> None:
    result = vpo("publish", "--repo", "me/optimizer")
    assert result.exit_code == 0, result.output
    for said in (
        "model -> me/optimizer, private, licence mit",
        "dataset -> me/optimizer-data, private, licence cc-by-4.0",
        "model.safetensors",
        "preference_pairs/train.parquet",
        str(here.platform.home / "published" / "shapes" / "model"),
        "nothing was sent",
    ):
        assert said in result.stdout
    assert there.repositories == {}
    alone = vpo("publish", "--only", "dataset")
    assert "model.safetensors" not in alone.stdout


def test_with_push_both_folders_are_sent(
    here: World, vpo: Vpo, there: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    result = vpo("publish", "--repo", "me/optimizer", "--push")
    assert result.exit_code == 0, result.output
    assert set(there.repositories) == {("model", "me/optimizer"), ("dataset", "me/optimizer-data")}
    assert "README.md" in there.repositories["model", "me/optimizer"]["files"]
    assert "https://hub.example/me/optimizer-data/commit/1" in result.stdout
    assert TOKEN not in result.output
    for file in (here.platform.home / "published").rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--push", "--repo", "me/x"], "HF_TOKEN is not set"),
        (["--push"], "--push needs --repo OWNER/NAME"),
        (["--repo", "nobody"], "name a repository as owner/name"),
        (["--checkpoint", "dpo-none"], "there is no checkpoint dpo-none"),
        (["--checkpoint", "../x"], "cannot name a checkpoint"),
        (["--target", "circles"], "there is no target 'circles'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(here: World, vpo: Vpo, arguments: list[str], said: str) -> None:
    result = vpo("publish", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.output
    assert not (here.platform.home / "published").exists()


def test_a_model_without_a_licence_is_one_line(here: World, vpo: Vpo) -> None:
    here.change(publishing={"sources": {"*": {"id": "mit"}}})
    result = vpo("publish")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("the licence of the base model fake-base 1 is not known")
    assert not (here.platform.home / "published").exists()


def test_the_assets_write_the_same_folders_and_only_on_request(world: Make) -> None:
    made = world()
    definitions = made.definitions
    everything = definitions.resolve_job_def(EVERYTHING).asset_layer.selected_asset_keys
    graph = definitions.resolve_asset_graph()
    published = [AssetKey(["shapes", name]) for name in ("published_model", "published_dataset")]
    assert {key for key in graph.get_all_asset_keys() if ON_REQUEST in graph.get(key).tags} == set(published)
    assert everything == graph.get_all_asset_keys() - set(published)
    with DagsterInstance.ephemeral() as instance:
        result = definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance, asset_selection=published
        )
    metadata = metadata_of(result, "shapes/published_model")
    assert metadata["checkpoint"] == best(made)
    assert metadata["licence"] == "mit"
    assert "What it is worth" in metadata["card"]
    assert Path(metadata["dagster/uri"], "README.md").is_file()
    assert metadata_of(result, "shapes/published_dataset")["bytes"] > 0

    made.change(publishing={})
    with DagsterInstance.ephemeral() as instance:
        failed = made.definitions.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance, asset_selection=published[1:], raise_on_error=False
        )
    assert not failed.success
    assert "set publishing.sources" in errors_of(failed) or "set publishing.base_model" in errors_of(failed)
