"""Time travel: what a checkpoint was trained on comes back byte for byte, or it is said what became of it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from storage.checkpoints import CheckpointManifest
from tests.assets.conftest import World
from vpo_assets.command_line import app
from vpo_assets.replay import UnknownTable, Verdict, replay, table_of, with_ancestors

pytestmark = pytest.mark.slow


def checkpoint(world: World, stage: str) -> str:
    rows = world.rows(f"SELECT checkpoint_id AS id FROM lake.main.checkpoints WHERE stage = '{stage}'")
    return str(rows[0]["id"])


def change_manifest(world: World, checkpoint_id: str, **changes: object) -> None:
    file = world.platform.checkpoints.path(checkpoint_id) / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def empty_tables(world: World) -> None:
    with world.platform.lake.write({"text": "all data gone"}) as transaction:
        transaction.execute("DELETE FROM lake.main.sft_dataset")
        transaction.execute("DELETE FROM lake.shapes.preference_pairs")


def test_a_checkpoint_and_its_ancestor_come_back_byte_for_byte(world: World, tmp_path: Path) -> None:
    dpo, sft = checkpoint(world, "dpo"), checkpoint(world, "sft")
    trained_on = {one: (world.platform.home / "training" / one / "data.parquet").read_bytes() for one in (dpo, sft)}
    empty_tables(world)  # history has them still
    world.renew()
    assert list(with_ancestors(world.platform, dpo)) == [dpo, sft]
    for one in (dpo, sft):
        out = tmp_path / one
        outcome = replay(world.platform, one, out)
        assert outcome.verdict is Verdict.SAME_BYTES, outcome
        assert out.read_bytes() == trained_on[one]
    assert not list(tmp_path.glob("*.unfinished"))


def test_the_command_says_it(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPO_PROFILE", str(world.file))
    dpo, sft = checkpoint(world, "dpo"), checkpoint(world, "sft")
    said = CliRunner().invoke(app, ["replay", dpo, "--ancestors", "--out", str(tmp_path / "out.parquet")])
    assert said.exit_code == 0, said.output
    assert [line.split(":")[0] for line in said.output.splitlines()] == [dpo, sft]
    assert said.output.count("same bytes") == 2
    assert (tmp_path / "out.parquet").is_file() and (tmp_path / f"{sft}.parquet").is_file()
    unknown = CliRunner().invoke(app, ["replay", "dpo-none"])
    assert unknown.exit_code == 2 and "there is no checkpoint dpo-none" in unknown.output


def test_other_content_other_writers_and_old_manifests_are_told_apart(world: World) -> None:
    sft = checkpoint(world, "sft")
    _, manifest = world.platform.checkpoints.load(sft)
    assert manifest.training_file is not None
    known = manifest.training_file.model_dump(mode="json")
    recipe = dict(manifest.recipe)

    change_manifest(world, sft, training_file=known | {"sha256": "0" * 64, "writer": "pyarrow 1.0"})
    outcome = replay(world.platform, sft)
    assert outcome.verdict is Verdict.SAME_ROWS and "written by pyarrow 1.0" in outcome.explanation

    change_manifest(world, sft, training_file=known | {"sha256": "0" * 64, "rows": 3}, recipe=recipe | {"data": "x"})
    outcome = replay(world.platform, sft)
    assert outcome.verdict is Verdict.DIFFERENT and "trained on 3 rows" in outcome.explanation

    change_manifest(world, sft, training_file=None, recipe=recipe)
    outcome = replay(world.platform, sft)
    assert outcome.verdict is Verdict.SAME_ROWS and "before the hash" in outcome.explanation


def test_a_manifest_of_before_still_loads() -> None:
    old = {"id": "sft-1", "stage": "sft", "base": "x", "recipe": {}, "inputs": {"sft_dataset": 3}}
    assert CheckpointManifest.model_validate(old).training_file is None


def test_a_snapshot_that_is_gone_is_said_to_be_with_what_is_left(world: World, tmp_path: Path) -> None:
    sft, dpo = checkpoint(world, "sft"), checkpoint(world, "dpo")
    lake = world.platform.lake
    for one in (sft, dpo):
        _, manifest = world.platform.checkpoints.load(one)
        change_manifest(world, one, inputs=dict.fromkeys(manifest.inputs, 999999))
    present = replay(world.platform, sft)
    assert present.verdict is Verdict.SAME_BYTES
    assert "has not been made yet" in present.explanation and "as it is now" in present.explanation

    empty_tables(world)
    outcome = replay(world.platform, dpo, tmp_path / "out")
    assert outcome.verdict is Verdict.GONE and "is the very file" in outcome.explanation
    assert not (tmp_path / "out").exists()
    (world.platform.home / "training" / dpo / "data.parquet").unlink()
    outcome = replay(world.platform, dpo)
    assert outcome.verdict is Verdict.GONE and "what is left is the manifest" in outcome.explanation
    assert lake.snapshot() < 999_999


def test_only_tables_of_the_graph_are_trained_on() -> None:
    assert table_of("shapes.preference_pairs").schema == "shapes" and table_of("sft_dataset").name == "sft_dataset"
    for label in ("../x", "shapes.nothing", "lake.main.queries; --"):
        with pytest.raises(UnknownTable):
            table_of(label)
