"""Sending a folder to the hub: only with a token, private unless told otherwise, and never a word of the token."""

from pathlib import Path

import huggingface_hub
import pytest

from resources import hub
from tests.resources.stand_in_hub import TOKEN, StandInHub


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> StandInHub:
    stand_in = StandInHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", stand_in)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return stand_in


def test_a_folder_is_sent_to_a_private_repository(there: StandInHub, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# x")
    address = hub.push(tmp_path, "me/model", "model", message="dpo-1")
    assert address == "https://hub.example/me/model/commit/1"
    assert there.token == TOKEN
    assert there.repositories == {("model", "me/model"): {"private": True, "files": ["README.md"]}}
    hub.push(tmp_path, "me/open", "dataset", message="dpo-1", public=True)
    assert there.repositories["dataset", "me/open"]["private"] is False


def test_what_others_can_see_is_not_written_to_unasked(there: StandInHub, tmp_path: Path) -> None:
    there.repositories["model", "me/open"] = {"private": False, "files": []}
    with pytest.raises(hub.HubError, match=r"me/open is public: push with --public"):
        hub.push(tmp_path, "me/open", "model", message="dpo-1")
    assert there.repositories["model", "me/open"]["files"] == []


@pytest.mark.parametrize("set_to", [None, "", "  "])
def test_without_a_token_nothing_is_sent(
    there: StandInHub, tmp_path: Path, set_to: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN") if set_to is None else monkeypatch.setenv("HF_TOKEN", set_to)
    with pytest.raises(hub.HubError, match="HF_TOKEN is not set"):
        hub.push(tmp_path, "me/model", "model", message="dpo-1")
    assert there.repositories == {}


def test_what_fails_is_told_in_one_line_without_the_token(there: StandInHub, tmp_path: Path) -> None:
    there.fails = OSError(f"cannot reach the hub with {TOKEN}\nTraceback")
    with pytest.raises(hub.HubError) as caught:
        hub.push(tmp_path, "me/model", "model", message="dpo-1")
    assert str(caught.value) == "the model me/model could not be pushed: cannot reach the hub with ***"
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("name", ["model", "a/b/c", "../x", "me/", "/x", "me/a b", "me/<b>", ""])
def test_a_repository_is_named_by_owner_and_name(name: str) -> None:
    with pytest.raises(hub.HubError, match="owner/name"):
        hub.checked_repository(name)
    assert hub.checked_repository("me/my-model_1.0") == "me/my-model_1.0"


def test_the_stand_in_is_asked_as_the_hub_is() -> None:
    """Every argument that the stand-in takes, the real one takes, too."""
    import inspect

    for name in ("create_repo", "repo_info", "upload_folder"):
        real = set(inspect.signature(getattr(huggingface_hub.HfApi, name)).parameters)
        assert set(inspect.signature(getattr(StandInHub, name)).parameters) <= real
    assert "token" in inspect.signature(huggingface_hub.HfApi).parameters
    assert "commit_url" in huggingface_hub.CommitInfo.__dataclass_fields__
