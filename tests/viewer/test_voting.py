"""Blind votes: who is asked what, and that a vote is stored once and stays."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from storage.tables import QUERIES, VOTES
from tests.assets.conftest import World
from tests.viewer.conftest import TARGET
from vpo_assets.platform import Platform
from vpo_assets.viewer.comparisons import (
    SHARED_EVERY,
    NothingToCompare,
    UnknownMethod,
    assignment,
    chosen_methods,
    comparisons,
)
from vpo_assets.viewer.results import Results
from vpo_assets.viewer.vote_figures import vote_figures, vote_sentences, vote_summary
from vpo_assets.viewer.voting import (
    AlreadyVoted,
    Choice,
    Polling,
    UnknownComparison,
    UnusableName,
    Vote,
    annotator_name,
)


@pytest.fixture
def polling(results: Results) -> Polling:
    return Polling(results)


def votes(results: Results) -> list[dict[str, str]]:
    found: list[dict[str, str]] = results.lake.read(VOTES.at(TARGET)).to_pylist()
    return found


def vote(polling: Polling, annotator: str, choice: Choice = "left") -> str:
    """Vote on what this annotator is asked next; the comparison."""
    asked = polling.progress(annotator).comparison
    assert asked is not None
    polling.vote(Vote(annotator=annotator, comparison_id=asked.comparison_id, choice=choice))
    return asked.comparison_id


def test_comparisons_are_of_one_query_and_seed_and_tell_two_clips_apart(world: World, results: Results) -> None:
    filmed = {row["video_id"]: row for row in world.rows("SELECT * FROM lake.shapes.eval_videos")}
    unsafe = min(row["query_id"] for row in filmed.values())
    assert unsafe in {one.query_id for one in comparisons(results).values()}
    with world.platform.lake.write({"text": "an unsafe query"}) as transaction:
        transaction.execute(f"UPDATE {QUERIES.qualified} SET safety = 'unsafe' WHERE query_id = ?", [unsafe])
    found = comparisons(results)
    assert found
    for identifier, one in found.items():
        first, second = filmed[one.first.video_id], filmed[one.second.video_id]
        assert identifier == one.comparison_id
        assert first["query_id"] == second["query_id"] == one.query_id
        assert first["seed"] == second["seed"]
        assert first["sha256"] != second["sha256"]
        assert first["method"] != second["method"]
        assert one.query_id != unsafe
    assert {one.methods for one in comparisons(results, ["original", "vpo"]).values()} == {("original", "vpo")}


def test_everyone_is_asked_everything_once_in_an_order_that_stays(results: Results) -> None:
    found = comparisons(results)
    for name in ("ann", "bob"):
        order = assignment(list(found.values()), name)
        assert Counter(one.comparison_id for one in order) == Counter(list(found))
        assert order == assignment(list(reversed(found.values())), name)
    assert assignment(list(found.values()), "ann") != assignment(list(found.values()), "bob")


def test_annotators_have_a_third_in_common_from_the_start_and_methods_take_turns(results: Results) -> None:
    found = list(comparisons(results).values())
    started = 12
    orders = [assignment(found, name)[:started] for name in ("ann", "bob", "eve")]
    common = set.intersection(*({one.comparison_id for one in order} for order in orders))
    assert len(common) >= started // SHARED_EVERY
    kinds = {one.methods for one in found}
    for order in orders:
        counted = Counter(one.methods for one in order)
        assert len(counted) >= min(len(kinds), started) - 2


def test_sides_stay_and_are_mixed(results: Results) -> None:
    found = list(comparisons(results).values())
    for one in found:
        assert one.sides("ann") == one.sides("ann")
        assert set(one.sides("ann")) == {one.first, one.second}
    swapped = sum(one.sides(name)[0] is one.first for one in found for name in ("ann", "bob", "eve"))
    assert 0.3 < swapped / (3 * len(found)) < 0.7


def test_a_vote_is_stored_with_what_was_seen(results: Results, polling: Polling) -> None:
    asked = polling.progress("Ann").comparison
    assert asked is not None
    left, right = asked.sides("ann")
    stored = polling.vote(Vote(annotator="Ann ", comparison_id=asked.comparison_id, choice="right"))
    assert (stored.new, stored.left, stored.right) == (True, left.method, right.method)
    (row,) = votes(results)
    assert (row["annotator"], row["choice"], row["query_id"]) == ("ann", "right", asked.query_id)
    assert (row["left_video_id"], row["right_video_id"]) == (left.video_id, right.video_id)
    assert (row["left_policy"], row["right_policy"]) == (left.policy, right.policy)


def test_a_vote_sent_twice_is_stored_once(results: Results, polling: Polling) -> None:
    one = vote(polling, "ann", "tie")
    again = polling.vote(Vote(annotator="ANN", comparison_id=one, choice="tie"))
    assert not again.new
    assert len(votes(results)) == 1
    assert polling.progress("ann").done == 1


def test_another_vote_on_the_same_comparison_is_refused(results: Results, polling: Polling) -> None:
    one = vote(polling, "ann", "left")
    with pytest.raises(AlreadyVoted, match="ann has voted left on this comparison already"):
        polling.vote(Vote(annotator="ann", comparison_id=one, choice="right"))
    assert [row["choice"] for row in votes(results)] == ["left"]
    polling.vote(Vote(annotator="bob", comparison_id=one, choice="right"))
    assert len(votes(results)) == 2


def test_the_same_vote_many_times_at_once_is_one(results: Results, polling: Polling) -> None:
    asked = polling.progress("ann").comparison
    assert asked is not None
    sent = Vote(annotator="ann", comparison_id=asked.comparison_id, choice="left")
    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(lambda _: polling.vote(sent), range(8)))
    assert sum(one.new for one in stored) == 1
    assert len(votes(results)) == 1


def test_all_can_be_voted_on_and_skipped(results: Results) -> None:
    polling = Polling(results, ["original", "vpo"])
    total = polling.progress("ann").total
    done = [vote(polling, "ann", "skip") for _ in range(total)]
    assert len(set(done)) == total
    finished = polling.progress("ann")
    assert finished.comparison is None
    assert (finished.done, finished.total) == (total, total)
    figures = vote_figures(results)
    assert (figures.votes, figures.skipped) == (0, total)


@pytest.mark.parametrize("name", ["", "   ", "x" * 41, "<script>", "a\x00b", "../x", "a;b", "-dash"])
def test_unusable_names(polling: Polling, name: str) -> None:
    with pytest.raises(UnusableName):
        polling.progress(name)


def test_a_name_is_one_person_however_it_is_typed() -> None:
    assert {annotator_name(name) for name in ("Jo Ann", " jo  ann ", "JO ANN")} == {"jo ann"}
    assert annotator_name("Zoë D'Arc 2") == "zoë d'arc 2"


def test_unknown_comparisons(polling: Polling) -> None:
    for identifier in ("", "nope", "'; DROP TABLE votes; --"):
        with pytest.raises(UnknownComparison):
            polling.vote(Vote(annotator="ann", comparison_id=identifier, choice="left"))


def test_no_held_out_videos(nothing_yet: Platform) -> None:
    with pytest.raises(NothingToCompare, match="queries in the test split"):
        Polling(Results(nothing_yet, TARGET)).progress("ann")


def test_methods_to_compare(results: Results) -> None:
    assert chosen_methods(results, None) is None
    assert chosen_methods(results, "vpo, original") == ["vpo", "original"]
    with pytest.raises(UnknownMethod, match=r"there is no method 'gpt'.*original, few_shot, sft, vpo"):
        chosen_methods(results, "vpo,gpt")
    with pytest.raises(UnknownMethod, match="takes two methods"):
        chosen_methods(results, "vpo")


def test_figures_of_votes(results: Results) -> None:
    """Two people who both prefer VPO wherever it is."""
    polling = Polling(results, ["original", "vpo"])
    total = polling.progress("ann").total
    for name in ("ann", "bob"):
        while (asked := polling.progress(name).comparison) is not None:
            left, _ = asked.sides(name)
            choice: Choice = "left" if left.method == "vpo" else "right"
            polling.vote(Vote(annotator=name, comparison_id=asked.comparison_id, choice=choice))
    figures = vote_figures(results)
    (row,) = figures.preferences
    assert (row.method, row.against, row.won, row.rate, row.queries) == ("vpo", "original", 2 * total, 1.0, total)
    assert figures.annotators == 2
    assert figures.agreement.share == 1
    assert figures.agreement.alpha == 1, "a method that always wins does not look like chance"
    assert figures.agreement.units == total
    summary = vote_summary(figures)
    assert summary["votes"] == 2 * total
    assert summary["agreement"]["krippendorff_alpha"] == 1
    assert any("Krippendorff's alpha 1.00" in sentence for sentence in vote_sentences(figures))
    scores = {r["video_id"]: r["score"] for r in results.lake.query("SELECT * FROM shapes.eval_rewards").to_pylist()}
    told = [
        scores[v.second.video_id] > scores[v.first.video_id]
        for v in comparisons(results, ["original", "vpo"]).values()
        if scores[v.first.video_id] != scores[v.second.video_id]
    ]
    assert figures.with_reward.mean == pytest.approx(sum(told) / len(told))


def test_votes_on_videos_that_were_made_anew_are_kept_and_not_counted(world: World, results: Results) -> None:
    one = vote(Polling(results), "ann")
    left = next(row["left_video_id"] for row in votes(results) if row["comparison_id"] == one)
    with world.platform.lake.write({"text": "made anew"}) as transaction:
        transaction.execute("DELETE FROM lake.shapes.eval_videos WHERE video_id = ?", [left])
    figures = vote_figures(results)
    assert (figures.votes, figures.outdated) == (0, 1)
    assert any("made anew" in sentence for sentence in vote_sentences(figures))
    assert vote_summary(figures)["agreement"]["krippendorff_alpha"] is None


def test_votes_outlive_a_run_that_has_nothing_to_do(world: World, results: Results) -> None:
    vote(Polling(results), "ann")
    assert world.platform.lake.count(QUERIES)
    world.materialize("shapes/evaluation")
    assert len(votes(results)) == 1
