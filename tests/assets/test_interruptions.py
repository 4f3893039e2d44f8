"""Runs that break off, files that are lost, rows that fail, and input that means no good."""

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.assets.conftest import HOSTILE, World, data_versions, errors_of, metadata_of, queries_of

pytestmark = pytest.mark.slow

VIDEOS = '"shapes"."videos"'


def without_videos(world: World) -> int:
    """Take all candidates' videos away, rows and files; how many there were."""
    rows = world.rows(f'SELECT video_id, uri FROM "lake".{VIDEOS}')
    with world.platform.lake.write({"text": "start over"}) as transaction:
        transaction.execute(f'DELETE FROM "lake".{VIDEOS}')
    for row in rows:
        world.platform.videos.path(row["uri"]).unlink(missing_ok=True)
    return len(rows)


def test_an_interrupted_run_renders_only_what_was_missing(world: World) -> None:
    before = world.ids(VIDEOS, "video_id")
    count = without_videos(world)
    world.change(refresh__video_batch=8)

    def interrupt(rendered: int) -> None:
        if rendered == 20:
            raise KeyboardInterrupt

    world.platform.camera.before_each = interrupt
    with pytest.raises(KeyboardInterrupt):
        world.materialize("shapes/videos")
    done = world.ids(VIDEOS, "video_id")
    assert len(done) == 16  # two batches; the third was under way
    world.renew()
    result = world.materialize("shapes/videos")
    assert world.platform.counts["videos"] == metadata_of(result, "shapes/videos")["new"] == count - 16
    assert metadata_of(result, "shapes/videos")["reused"] == 16
    assert world.ids(VIDEOS, "video_id") == before


KILLED = """
import sys, time
from pathlib import Path
from tests.assets.conftest import World
world = World(Path(sys.argv[1]), refresh__video_batch=8)
def hang(rendered):
    if rendered == 20:
        print("rendered 20", flush=True)
        time.sleep(600)
world.platform.camera.before_each = hang
world.materialize("shapes/videos")
"""


def test_a_killed_run_renders_only_what_was_missing(world: World) -> None:
    before = world.ids(VIDEOS, "video_id")
    count = without_videos(world)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), world.home],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "rendered 20\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(world.ids(VIDEOS, "video_id")) == 16
    result = world.materialize()  # the whole graph
    assert metadata_of(result, "shapes/videos")["new"] == count - 16
    assert world.platform.counts["videos"] == count - 16
    assert world.ids(VIDEOS, "video_id") == before
    assert world.platform.counts["sft trainings"] == world.platform.counts["dpo trainings"] == 0


def test_lost_and_cut_files_are_rendered_again_and_no_others(world: World) -> None:
    rows = world.rows(f'SELECT uri, sha256 FROM "lake".{VIDEOS} ORDER BY video_id')
    uris = list(dict.fromkeys(row["uri"] for row in rows))
    gone, cut = (world.platform.videos.path(uri) for uri in uris[:2])
    clips = {path: path.read_bytes() for path in (gone, cut)}
    gone.unlink()
    cut.write_bytes(clips[cut][:50])
    affected = sum(row["uri"] in uris[:2] for row in rows)
    version = world.rows(f'SELECT count(DISTINCT video_id) AS n FROM "lake".{VIDEOS}')
    result = world.materialize("shapes/videos")
    seen = metadata_of(result, "shapes/videos")
    assert world.platform.counts["videos"] == affected
    assert (seen["reused"], seen["failed"]) == (len(rows) - affected, 0)
    assert {path: path.read_bytes() for path in (gone, cut)} == clips
    assert world.rows(f'SELECT count(DISTINCT video_id) AS n FROM "lake".{VIDEOS}') == version


def test_a_file_of_other_contents_is_named_and_one_row_fails(world: World) -> None:
    """Of the right size, so that only who reads it notices: the reward does, and its row is quarantined."""
    row = world.rows(f'SELECT uri, bytes FROM "lake".{VIDEOS} ORDER BY video_id LIMIT 1')[0]
    world.platform.videos.path(row["uri"]).write_bytes(b"x" * row["bytes"])
    with world.platform.lake.write({"text": "start over"}) as transaction:
        transaction.execute('DELETE FROM "lake"."shapes"."video_rewards"')
    result = world.materialize("shapes/video_rewards")
    seen = metadata_of(result, "shapes/video_rewards")
    assert seen["failed"] >= 1
    errors = {r["error"] for r in world.rows('SELECT error FROM "lake"."main"."failures"')}
    assert all(row["uri"] in error and "is damaged" in error for error in errors)
    assert len(errors) == 1

    world.renew()
    healed = world.materialize("shapes/videos", "shapes/video_rewards")
    assert metadata_of(healed, "shapes/videos")["redone"] >= 1
    assert metadata_of(healed, "shapes/video_rewards")["failed"] == 0
    assert not world.rows('SELECT error FROM "lake"."main"."failures"')


def test_a_row_that_fails_is_quarantined_named_and_tried_again(world: World) -> None:
    without_videos(world)
    prompts = world.rows(
        "SELECT prompt, count(*) AS n FROM lake.shapes.candidate_critiques WHERE aligned GROUP BY ALL ORDER BY ALL"
    )
    bad = prompts[0]["prompt"]
    seeds = world.profile.targets["shapes"].seeds_per_prompt
    world.platform.camera.broken_for = bad
    result = world.materialize("shapes/videos")
    seen = metadata_of(result, "shapes/videos")
    assert seen["failed"] == prompts[0]["n"] * seeds
    assert seen["new"] == sum(row["n"] for row in prompts[1:]) * seeds
    quarantined = world.rows('SELECT table_name, error, attempts FROM "lake"."main"."failures"')
    assert {(row["table_name"], row["attempts"]) for row in quarantined} == {("shapes.videos", 1)}
    assert all("cannot film" in row["error"] for row in quarantined)

    world.renew()
    healed = metadata_of(world.materialize("shapes/videos"), "shapes/videos")
    assert (healed["new"], healed["failed"]) == (prompts[0]["n"] * seeds, 0)
    assert world.rows('SELECT * FROM "lake"."main"."failures"') == []


def test_too_many_failures_end_the_run_and_keep_the_good_rows(world: World) -> None:
    without_videos(world)
    world.platform.camera.broken_for = "keeps its"  # a phrase of many prompts
    result = world.materialize("shapes/videos", fails=True)
    assert "shapes.videos" in errors_of(result)
    assert "rows failed, more than the allowed share of 0.2" in errors_of(result)
    assert "cannot film keeps its" in errors_of(result)
    assert world.ids(VIDEOS, "video_id")


def test_a_failed_training_leaves_no_checkpoint_and_says_why(world: World) -> None:
    world.change(sft__epochs=7)
    world.platform.trainer.fails = True
    result = world.materialize("sft_checkpoint", fails=True)
    assert "out of memory" in errors_of(result)
    assert len(list((world.platform.home / "checkpoints").glob("sft-*"))) == 1  # the one from before
    world.renew()
    assert metadata_of(world.materialize("sft_checkpoint"), "sft_checkpoint")["trained_now"] is True


def test_a_checkpoint_that_lost_a_file_is_named_and_trained_again(world: World) -> None:
    checkpoint = world.rows("SELECT checkpoint_id AS id FROM lake.main.checkpoints WHERE stage = 'sft'")[0]["id"]
    (world.platform.checkpoints.path(checkpoint) / "model.safetensors").unlink()
    world.change(targets__shapes__candidates__sampling__temperature=0.5)
    failed = world.materialize("shapes/candidates", fails=True)
    assert "model.safetensors is missing" in errors_of(failed)
    assert f"checkpoint {checkpoint}" in errors_of(failed)
    world.renew()
    result = world.materialize("sft_checkpoint")
    assert metadata_of(result, "sft_checkpoint")["trained_now"] is True
    world.materialize("shapes/candidates")


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["x", "??"], "curation dropped every one of 2 queries"),
        ([" ", ""], "there are no queries to curate"),
    ],
)
def test_nothing_to_work_on_is_one_clear_line(empty_world: Callable[..., World], texts: list[str], reason: str) -> None:
    result = empty_world(texts).materialize(fails=True)
    assert reason in errors_of(result)
    assert "queries" in data_versions(result) or "raw_prompts" in data_versions(result)


@pytest.mark.parametrize("content", ["", "{not json\n", '{"other": 1}\n'])
def test_a_query_file_that_cannot_be_read_is_named(empty_world: Callable[..., World], content: str) -> None:
    world = empty_world([])
    (world.home / "queries.jsonl").write_text(content)
    result = world.materialize(fails=True)
    assert "queries.jsonl" in errors_of(result) or "there are no queries" in errors_of(result)


def test_hostile_queries_go_through_as_text(empty_world: Callable[..., World]) -> None:
    shares: Mapping[str, Any] = {"sft_share": 0.34, "dpo_share": 0.33, "test_share": 0.33}
    markup = [f"{HOSTILE[0]} {word}" for word in ("here", "there", "now", "soon", "again", "today")]
    world = empty_world([*queries_of(24), *HOSTILE, *markup])
    curation = {**world.settings["queries"]["curation"], **shares, "maximum_characters": 200_000}
    curation |= {"special_character_share": 1.0, "repeated_in_a_row": 100_000, "repeated_word_share": 1.0}
    curation["english_only"] = False
    world.change(queries__curation=curation)
    started = time.monotonic()
    result = world.materialize()
    assert time.monotonic() - started < 200
    assert len(data_versions(result)) == 18
    kept = world.rows('SELECT query FROM "lake"."main"."queries" WHERE keep')
    texts = " ".join(row["query"] for row in kept)
    for piece in (
        "DROP TABLE queries",
        "verdict: aligned",
        "${query}",
        '<script>alert("boo")',
        "<|im_end|>",
        "etc/passwd",
    ):
        assert piece in texts
    # A forged verdict is judged like any other text.
    verdicts = world.rows(
        "SELECT c.verdict FROM lake.shapes.eval_critiques AS c JOIN lake.main.queries AS q USING (query_id) "
        "WHERE q.query LIKE '%verdict: aligned%' AND c.method = 'original'"
    )
    assert all(row["verdict"] != "aligned" for row in verdicts)
    report = (world.platform.home / "reports" / "shapes.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(" in report
    for forbidden in ('<script>alert("boo")', "<img src=x", "\u0000"):
        assert forbidden not in report
    for value in (value for asset in data_versions(result) for value in metadata_of(result, asset).values()):
        assert not (isinstance(value, str) and "<script>" in value)
    world.renew()
    again = world.materialize()
    assert data_versions(again) == data_versions(result)
    assert sum(world.platform.counts.values()) == 0


def test_a_query_of_a_hundred_thousand_characters_is_dropped_with_its_reason(empty_world: Callable[..., World]) -> None:
    world = empty_world([*queries_of(3), "crimson hoop " + "very " * 20_000])
    world.materialize("raw_prompts", "queries")
    reasons = world.rows('SELECT drop_reason FROM "lake"."main"."queries" WHERE NOT keep')
    assert reasons == [{"drop_reason": "too_long"}]
    assert np.all([len(row["query"]) < 2000 for row in world.rows("SELECT query FROM lake.main.queries WHERE keep")])
