"""The checkpoint store: whole or not there, and every alteration named."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from storage.checkpoints import BrokenCheckpoint, CheckpointManifest, CheckpointStore


def manifest(checkpoint_id: str) -> CheckpointManifest:
    return CheckpointManifest(
        id=checkpoint_id, stage="sft", base="model@1", recipe={"rate": 1e-4}, inputs={"sft_dataset": 7}
    )


def fill(folder: Path) -> Mapping[str, float]:
    (folder / "weights.data").write_bytes(bytes(range(256)) * 40)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocabulary.json").write_text("{}")
    return {"loss": 0.25}


def must_not_run(folder: Path) -> Mapping[str, float]:
    raise AssertionError("trained again")


def test_commit_and_load(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    assert not store.exists("one") and store.list() == []
    path = store.commit("one", manifest("one"), fill)
    found, loaded = store.load("one")
    assert found == path == store.path("one") and store.exists("one")
    assert (loaded.metrics, loaded.inputs, loaded.recipe) == (
        {"loss": 0.25},
        {"sft_dataset": 7},
        {"rate": 1e-4},
    )
    assert {name: file.bytes for name, file in loaded.files.items()} == {
        "weights.data": 10240,
        "tokenizer/vocabulary.json": 2,
    }
    assert store.commit("one", manifest("one"), must_not_run) == path
    store.commit("two", manifest("two"), fill)
    assert [entry.id for entry in store.list()] == ["one", "two"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)

    def fails(folder: Path) -> Mapping[str, float]:
        fill(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.commit("one", manifest("one"), fails)
    assert not store.exists("one") and list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="wrote no file"):
        store.commit("one", manifest("one"), lambda folder: {})
    assert list(tmp_path.iterdir()) == []


def same_size(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "complaint"),
    [
        ("weights.data", Path.unlink, "weights.data is missing"),
        ("weights.data", same_size, "weights.data was altered"),
        ("weights.data", lambda file: file.write_bytes(b"x"), "weights.data has 1 bytes instead of 10240"),
        ("tokenizer/vocabulary.json", Path.unlink, "tokenizer/vocabulary.json is missing"),
        ("manifest.json", Path.unlink, "manifest.json is missing"),
        ("manifest.json", lambda file: file.write_text('{"id": "one"'), "manifest.json cannot be read"),
        ("manifest.json", lambda file: file.write_text('{"id": "one"}'), "manifest.json cannot be read"),
    ],
)
def test_damage_is_named_and_mended_by_committing_again(
    tmp_path: Path, name: str, damage: Callable[[Path], object], complaint: str
) -> None:
    store = CheckpointStore(tmp_path)
    store.commit("one", manifest("one"), fill)
    damage(store.path("one") / name)
    with pytest.raises(BrokenCheckpoint, match=complaint) as caught:
        store.load("one")
    assert "materialize its asset again" in str(caught.value) and "\n" not in str(caught.value)
    store.commit("one", manifest("one"), fill)
    store.load("one")
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_without_verify_sizes_are_checked_and_contents_are_not(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.commit("one", manifest("one"), fill)
    same_size(store.path("one") / "weights.data")
    store.load("one", verify=False)
    (store.path("one") / "weights.data").unlink()
    with pytest.raises(BrokenCheckpoint, match="is missing"):
        store.load("one", verify=False)


def test_a_manifest_cannot_point_outside_or_belong_to_another(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    file = store.commit("one", manifest("one"), fill) / "manifest.json"
    content = json.loads(file.read_text())
    (tmp_path / "secret").write_text("x")
    content["files"]["../secret"] = {"sha256": "0" * 64, "bytes": 1}
    file.write_text(json.dumps(content))
    with pytest.raises(BrokenCheckpoint, match="outside"):
        store.load("one")
    file.write_text(json.dumps({**content, "id": "two"}))
    with pytest.raises(BrokenCheckpoint, match="is that of two"):
        store.load("one")


def test_unknown_and_unfinished_checkpoints(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.commit("one", manifest("one"), fill)
    (tmp_path / ".unfinished-two-x").mkdir()
    (tmp_path / ".unfinished-two-x" / "manifest.json").write_text("{}")
    assert [entry.id for entry in store.list()] == ["one"]
    with pytest.raises(BrokenCheckpoint, match=r"there is no checkpoint two .* there are: one$"):
        store.load("two")


@pytest.mark.parametrize("checkpoint_id", ["", "../up", "a/b", ".hidden", "a" * 200])
def test_ids_are_plain_names(tmp_path: Path, checkpoint_id: str) -> None:
    store = CheckpointStore(tmp_path)
    for ask in (store.exists, store.load, store.path):
        with pytest.raises(ValueError, match="cannot name a checkpoint"):
            ask(checkpoint_id)
    with pytest.raises(ValueError, match="not 'one'"):
        store.commit("one", manifest("two"), fill)


def test_links_are_refused(tmp_path: Path) -> None:
    def links(folder: Path) -> Mapping[str, float]:
        (folder / "weights.data").symlink_to("/etc/hostname")
        return {}

    with pytest.raises(ValueError, match=r"weights\.data is a link"):
        CheckpointStore(tmp_path).commit("one", manifest("one"), links)
