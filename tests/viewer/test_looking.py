"""What the viewer reads from the lake: pairs, the gallery and the overview are what the tables hold."""

from __future__ import annotations

from typing import Any

import pytest

from resources.settings import METHODS
from storage.tables import EVAL_VIDEOS, PREFERENCE_PAIRS, QUERIES
from tests.assets.conftest import World
from tests.viewer.conftest import TARGET
from vpo_assets.platform import Platform
from vpo_assets.viewer.filters import PAGE_ROWS, PairFilter, QueryFilter, UnusableFilter, read_filter
from vpo_assets.viewer.gallery import query_page
from vpo_assets.viewer.overview import overview
from vpo_assets.viewer.pairs import ShownPair, pair_page
from vpo_assets.viewer.results import Results, UnknownClip


def text_of(pair: ShownPair, side: str) -> str:
    return "".join(piece.text for piece in getattr(pair, side).pieces)


def all_pairs(results: Results, **wanted: Any) -> list[ShownPair]:
    page = pair_page(results, PairFilter(**wanted), 1000)
    assert page.found == len(page.pairs)
    return list(page.pairs)


def stored(results: Results, where: str = "true") -> dict[str, dict[str, Any]]:
    rows = results.lake.read(PREFERENCE_PAIRS.at(TARGET), where=where).to_pylist()
    return {row["pair_id"]: row for row in rows}


def test_pairs_are_those_of_the_lake(results: Results) -> None:
    shown = {pair.pair_id: pair for pair in all_pairs(results)}
    rows = stored(results)
    assert set(shown) == set(rows)
    queries = dict(results.lake.query(f"SELECT query_id, query FROM {QUERIES.qualified}").to_pydict().items())
    asked = dict(zip(queries["query_id"], queries["query"], strict=True))
    for name, pair in shown.items():
        row = rows[name]
        assert (text_of(pair, "chosen"), text_of(pair, "rejected")) == (row["chosen"], row["rejected"])
        assert (pair.feedback, pair.margin, pair.query) == (row["feedback"], row["margin"], asked[row["query_id"]])
        assert {clip.video_id for clip in pair.chosen.clips} == set(row["chosen_video_ids"])
        assert {clip.video_id for clip in pair.rejected.clips} == set(row["rejected_video_ids"])
        assert pair.source is not None
        assert pair.source.file == "queries.jsonl"


def test_the_margin_and_the_answers_of_a_video_pair_fit_its_clips(results: Results) -> None:
    pairs = all_pairs(results, feedback="video")
    assert pairs
    for pair in pairs:
        assert pair.chosen.score is not None
        assert pair.rejected.score is not None
        assert pair.margin == pytest.approx(pair.chosen.score - pair.rejected.score)
        assert pair.gains["score"] == pytest.approx(pair.margin)
        assert pair.differing >= 1
        for question, (chosen, rejected) in pair.answers[: pair.differing]:
            assert question.endswith("?"), "the question's text, not its id"
            assert chosen != rejected


def test_pairs_of_text_feedback_say_what_the_judge_found(results: Results) -> None:
    pairs = all_pairs(results, feedback="text")
    assert pairs
    assert all(pair.rejected.verdict not in (None, "aligned") and pair.rejected.critique for pair in pairs)
    assert any(pair.chosen.refined for pair in pairs)


def test_filters_of_pairs(results: Results) -> None:
    rows = stored(results)
    margins = sorted(row["margin"] for row in rows.values() if row["margin"] is not None)
    middle = margins[len(margins) // 2]
    assert {pair.pair_id for pair in all_pairs(results, margin=middle)} == {
        name for name, row in rows.items() if row["margin"] is not None and row["margin"] >= middle
    }
    word = next(iter(rows.values()))["rejected"].split()[-1].lower()
    found = all_pairs(results, text=f"  {word.upper()} ")
    assert found
    assert all(word in f"{p.query} {text_of(p, 'chosen')} {text_of(p, 'rejected')}".lower() for p in found)
    assert all_pairs(results, text="' OR 1=1 --") == []
    one = next(iter(rows))
    assert [pair.pair_id for pair in all_pairs(results, text=one)] == [one]
    ordered = [pair.margin for pair in all_pairs(results, order="margin", feedback="video")]
    assert ordered == sorted(margins, reverse=True)
    better = 0
    for dimension in results.dimensions:
        expected = {p.pair_id for p in all_pairs(results) if p.gains.get(dimension, 0) > 1e-9}
        assert {pair.pair_id for pair in all_pairs(results, dimension=dimension)} == expected
        better += len(expected)
    assert better


def test_pages_follow_each_other(results: Results) -> None:
    whole = [pair.pair_id for pair in all_pairs(results)]
    assert len(whole) > PAGE_ROWS
    pages = [pair_page(results, PairFilter(page=n)) for n in (1, 2)]
    assert [pair.pair_id for page in pages for pair in page.pairs] == whole[: 2 * PAGE_ROWS]
    far = pair_page(results, PairFilter(page=1000))
    assert (far.pairs, far.found, far.total) == ([], len(whole), len(whole))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"page": "0"}, "page: .*greater than or equal to 1"),
        ({"margin": "much"}, "margin: .*number"),
        ({"margin": "nan"}, "margin: .*finite"),
        ({"feedback": "audio"}, "feedback: .*'text' or 'video'"),
        ({"text": "x" * 201}, "text: .*200 characters"),
        ({"colour": "red"}, "colour: .*not permitted"),
    ],
)
def test_wrong_filters_are_refused_by_name(values: dict[str, str], complaint: str) -> None:
    with pytest.raises(UnusableFilter, match=complaint):
        read_filter(PairFilter, values)


def test_empty_fields_of_the_form_are_no_filter() -> None:
    assert read_filter(PairFilter, {"margin": "", "text": " ", "page": ""}) == PairFilter()


def test_the_gallery_has_every_held_out_query_with_every_method(results: Results) -> None:
    page = query_page(results, QueryFilter(), 1000)
    rows = results.lake.read(EVAL_VIDEOS.at(TARGET)).to_pylist()
    assert {query.query_id for query in page.queries} == {row["query_id"] for row in rows}
    assert page.found == page.total == len(page.queries)
    filmed = {(row["query_id"], row["method"]): row for row in rows}  # one seed each
    for query in page.queries:
        assert [made.method for made in query.methods] == list(METHODS)
        for made in query.methods:
            row = filmed[query.query_id, made.method]
            assert made.clip is not None
            assert (made.clip.video_id, made.prompt) == (row["video_id"], row["prompt"])
            assert made.verdict is not None
        scores = {made.method: made.clip.score for made in query.methods if made.clip}
        assert query.gains["score"] == pytest.approx((scores["vpo"] or 0) - (scores["original"] or 0))


def test_the_gallery_is_ordered_by_gain(results: Results) -> None:
    gains = [query.gains["score"] for query in query_page(results, QueryFilter(order="gain"), 1000).queries]
    assert gains == sorted(gains, reverse=True)
    assert len(set(gains)) > 1
    losses = query_page(results, QueryFilter(order="loss", dimension="quality"), 1000).queries
    assert [q.gains["quality"] for q in losses] == sorted(q.gains["quality"] for q in losses)


def test_the_gallery_has_no_clip_of_a_seed_that_was_not_filmed(results: Results) -> None:
    page = query_page(results, QueryFilter(seed=2))
    assert page.seeds == 1
    assert all(made.clip is None for query in page.queries for made in query.methods)


def test_the_overview_has_the_evaluations_figures(world: World, results: Results) -> None:
    shown = overview(results)
    assert [row.method for row in shown.methods] == list(METHODS)
    scores = {
        row["method"]: row["value"]
        for row in world.rows("SELECT * FROM lake.shapes.evaluation WHERE metric = 'score' AND section = 'video_level'")
    }
    assert {row.method: row.score for row in shown.methods} == scores
    assert shown.votes.votes == 0
    funnels = {title: [(step.name, step.count) for step in steps] for title, steps in shown.funnels}
    (read,) = world.rows("SELECT count(*) AS n, count(*) FILTER (keep) AS kept FROM lake.main.queries")
    assert (funnels["Queries"][0][1], funnels["Queries"][-1][1]) == (read["n"], read["kept"])
    assert funnels["To learn preferences from"][-1] == ("in a pair", len(stored(results)))
    assert [trained.stage for trained in shown.trained] == ["sft", "dpo"]
    assert {curve.name for trained in shown.trained for curve in trained.curves} >= {"loss"}


def test_nothing_made_yet_is_no_error(nothing_yet: Platform) -> None:
    results = Results(nothing_yet, TARGET)
    assert pair_page(results, PairFilter()).total == 0
    assert query_page(results, QueryFilter()).total == 0
    shown = overview(results)
    assert "vpo materialize" in shown.missing
    assert not shown.trained


def test_clips_are_found_by_their_id_only(world: World, results: Results) -> None:
    (video,) = world.rows("SELECT video_id, uri FROM lake.shapes.eval_videos LIMIT 1")
    file, kind = results.clip_file(video["video_id"])
    assert file.read_bytes()[:4] == b"RIFF"
    assert kind == "image/webp"
    for wrong in (video["uri"], "../../profile.yaml", "", "'; DROP TABLE videos; --"):
        with pytest.raises(UnknownClip):
            results.clip_file(wrong)
    file.unlink()
    with pytest.raises(UnknownClip, match="a refresh renders it again"):
        results.clip_file(video["video_id"])
