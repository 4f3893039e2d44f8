"""A query that is taken out of its file, or taken down, is gone from every table after the next run."""

import json
import os
from pathlib import Path

import pytest
from dagster import AssetCheckEvaluation, ExecuteInProcessResult

from storage.ids import content_id
from storage.ingestion import ingest
from storage.tables import BRANCH, TRUNK
from tests.assets.conftest import World, errors_of, metadata_of, queries_of, write_queries
from vpo_assets.prompts import take_down_of

WITH_QUERIES = [
    table
    for table in (*TRUNK, *(table.at("shapes") for table in BRANCH))
    if "query_id" in {column.name for column in table.columns} and table.name not in ("taken_down",)
]


def one_of_each_split(world: World) -> dict[str, str]:
    """{query id: text} of a query that was learned from by SFT, one by DPO, and one that is held out."""
    found = world.rows(
        "SELECT r.query_id, r.text FROM lake.main.raw_prompts r WHERE query_id IN ("
        "(SELECT min(query_id) FROM lake.main.sft_dataset), (SELECT min(query_id) FROM lake.shapes.preference_pairs), "
        "(SELECT min(query_id) FROM lake.shapes.eval_rewards))"
    )
    assert len(found) == 3
    return {row["query_id"]: row["text"] for row in found}


def tables_with(world: World, query_ids: set[str]) -> set[str]:
    """Labels of the tables that hold a row of one of these queries."""
    held = set()
    for table in WITH_QUERIES:
        rows = world.platform.lake.read(table, columns=["query_id"])
        if query_ids & set(rows["query_id"].to_pylist()):
            held.add(table.label)
    return held


def without(world: World, texts: set[str]) -> None:
    file = world.home / "queries.jsonl"
    kept = [line for line in file.read_text().splitlines() if json.loads(line)["text"] not in texts]
    file.write_text("\n".join(kept) + "\n", encoding="utf-8")


def evaluations(result: ExecuteInProcessResult, name: str) -> dict[str, AssetCheckEvaluation]:
    found = [evaluation for evaluation in result.get_asset_check_evaluations() if evaluation.check_name == name]
    return {evaluation.asset_key.to_user_string(): evaluation for evaluation in found}


EVERYWHERE = {
    *("raw_prompts", "query_lines", "queries", "drafts", "draft_critiques", "sft_dataset"),
    *(
        f"shapes.{name}"
        for name in (
            *("candidates", "candidate_critiques", "videos", "video_rewards", "preference_pairs"),
            *("eval_prompts", "eval_critiques", "eval_safety", "eval_videos", "eval_rewards"),
        )
    ),
}


@pytest.mark.slow
def test_what_is_taken_out_of_its_file_is_gone_from_every_table(world: World) -> None:
    gone = one_of_each_split(world)
    assert tables_with(world, set(gone)) == EVERYWHERE
    without(world, set(gone.values()))
    result = world.materialize()
    assert metadata_of(result, "raw_prompts")["removed"] == 3
    assert tables_with(world, set(gone)) == set()
    checked = evaluations(result, "no_removed_query_learned")
    assert set(checked) == {"sft_checkpoint", "shapes/dpo_checkpoint"}
    assert all(evaluation.passed for evaluation in checked.values())  # both are new


@pytest.mark.slow
def test_what_is_taken_down_is_gone_from_every_table_and_a_pinned_policy_says_so(world: World) -> None:
    gone = one_of_each_split(world)
    policy = world.rows("SELECT DISTINCT policy FROM lake.shapes.candidates")[0]["policy"]
    listed = world.home / "down.txt"
    listed.write_text("".join(f"  {text.upper()}\n" for text in gone.values()) + "nobody ever wrote this\n")
    world.change(queries__take_down=[str(listed)], targets__shapes__candidates__policy=policy)
    result = world.materialize()
    seen = metadata_of(result, "raw_prompts")
    assert (seen["taken_down_now"], seen["taken_down"]) == (3, 3)
    assert (seen["take_down_entries"], seen["take_down_entries_without_match"]) == (4, 1)
    assert tables_with(world, set(gone)) == {"query_lines"}  # which knows ids only
    checked = evaluations(result, "no_removed_query_learned")
    assert checked["sft_checkpoint"].passed
    pinned = checked["shapes/dpo_checkpoint"]
    assert not pinned.passed
    assert pinned.severity.value == "WARN"
    assert pinned.metadata["removed queries learned"].value == 1
    sft = world.rows(f"SELECT query_id FROM lake.main.sft_dataset AT (VERSION => {snapshot_of(world, policy)})")
    (query_id,) = set(gone) & {row["query_id"] for row in sft}
    assert pinned.metadata["query ids"].value == query_id
    assert not any(text in str(pinned.metadata) for text in gone.values())
    # A file that brings it again does not bring it in.
    ingested = ingest(
        world.platform.lake,
        write_queries(world.home / "again.jsonl", list(gone.values())),
        take_down=take_down_of(world.platform),
    )
    assert (ingested.new, ingested.taken_down) == (0, 3)


def snapshot_of(world: World, checkpoint_id: str) -> int:
    return world.platform.checkpoints.load(checkpoint_id)[1].inputs["sft_dataset"]


def settled(file: Path) -> Path:
    os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 3600))
    return file


def test_the_inbox_is_taken_in_and_a_broken_file_stands_in_nobodys_way(world: World) -> None:
    inbox = world.platform.inbox
    inbox.mkdir(exist_ok=True)
    (inbox / "bad.parquet").write_bytes(b"PAR1 nonsense PAR1")
    more = queries_of(3, first=90)
    settled(write_queries(inbox / "good.jsonl", more))
    settled(inbox / "bad.parquet")
    write_queries(inbox / "fresh.jsonl", queries_of(2, first=95))
    result = world.materialize("raw_prompts")
    seen = metadata_of(result, "raw_prompts")
    assert (seen["new"], seen["inbox_unreadable"], seen["inbox_waiting"]) == (3, 1, 1)
    assert "good.jsonl" in seen["files"]
    assert "bad.parquet" in seen["unreadable_files"]
    assert {content_id(text) for text in more} <= world.ids("main.raw_prompts", "query_id")
    (failure,) = world.rows("SELECT * FROM lake.main.ingestion_failures")
    assert (failure["source"], failure["line"]) == ("bad.parquet", 0)
    (inbox / "good.jsonl").unlink()  # a mailbox: what was taken in stays
    settled(inbox / "fresh.jsonl")
    result = world.materialize("raw_prompts")
    assert metadata_of(result, "raw_prompts")["new"] == 2
    assert {content_id(text) for text in more} <= world.ids("main.raw_prompts", "query_id")


def test_files_that_the_profile_names_no_longer_let_go(world: World) -> None:
    more = [text for text in queries_of(9, first=90) if text not in set(queries_of(48))]
    files = world.settings["queries"]["files"]
    world.change(queries__files=[*files, str(write_queries(world.home / "more.jsonl", more))])
    assert metadata_of(world.materialize("raw_prompts"), "raw_prompts")["new"] == len(more)
    before = world.platform.lake.snapshot()
    world.materialize("raw_prompts")
    assert world.platform.lake.snapshot() == before
    world.change(queries__files=files)
    seen = metadata_of(world.materialize("raw_prompts"), "raw_prompts")
    assert (seen["removed"], seen["dagster/row_count"]) == (len(more), 48)


def test_a_take_down_file_that_is_not_there_is_one_clear_failure(world: World) -> None:
    world.change(queries__take_down=[str(world.home / "nowhere.txt")])
    assert "nowhere.txt: there is no such file" in errors_of(world.materialize("raw_prompts", fails=True))


def test_columns_may_be_mapped(world: World) -> None:
    file = world.home / "wishes.csv"
    file.write_text("wish,harm\na plain cube,0.25\n")
    files = world.settings["queries"]["files"]
    world.change(queries__files=[*files, str(file)], queries__columns={"text": "wish", "toxicity": "harm"})
    world.materialize("raw_prompts")
    (row,) = world.rows("SELECT * FROM lake.main.raw_prompts WHERE source = 'wishes.csv'")
    assert (row["text"], row["toxicity"]) == ("a plain cube", 0.25)
