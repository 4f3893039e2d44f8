"""Selecting preference pairs against doing it as one reads it in the paper: all pairs, with Python's lists.

    python benchmarks/pair_selection.py                  # 10,000 queries, 4 candidates each, 64 answers a candidate

Both sides get the same candidates, critiques and rewards from the same lake and must give the same pairs; they take
turns in the same run, and what is shown is the median round of each. A ratio is how many times faster the arrays of
ml/preference.py are.

    selection        from answers in memory (each side's own form) to which candidate is preferred to which, by video
    rows             the same, and text-level pairs, conflicts and the finished rows with their ids
    stored to stored from the tables in the lake to the pairs in the lake

The plain side looks at every ordered pair of a query's candidates and compares all answers of both, then takes the
first pair that is good. `stops early` is the same with comparisons that end at the first answer that decides.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ml.checklist import Checklist, Question
from ml.preference import PairSettings, average_rewards, dominating_pairs, select_pairs
from storage.ids import content_id
from storage.lake import Lake
from storage.recipe import Recipe, stamped
from storage.refresh import rebuild
from storage.tables import CANDIDATE_CRITIQUES, CANDIDATES, PREFERENCE_PAIRS, VIDEO_REWARDS, Table
from vpo_assets.report.tables import print_tables

Row = dict[str, Any]
Pairs = list[tuple[str, str]]
TABLES = (CANDIDATES, CANDIDATE_CRITIQUES, VIDEO_REWARDS, PREFERENCE_PAIRS)
MARGIN = 0.5
ALLOWED = {"selection": 100.0, "stored to stored": 20.0}


def checklist_of(questions: int) -> Checklist:
    """So many questions in a few dimensions, of a weight whose sums are exact: both sides see the same margins."""
    return Checklist(
        "big", "1", tuple(Question(f"q{i}", "?", f"d{i % 9}", f"s{i % 20}", 0.125) for i in range(questions))
    )


def fill(lake: Lake, queries: int, k: int, checklist: Checklist) -> None:
    """Candidates of all qualities with their critiques; one video each for those that passed, and its answers."""
    rng = np.random.default_rng(0)
    count = queries * k
    aligned = rng.random(count) < 0.9
    answers = rng.random(len(checklist))[None, :] < rng.random(count)[:, None]
    scores = checklist.score(answers)
    ids = [content_id("candidate", str(i)) for i in range(count)]
    shared = {
        "query_id": [f"query {i // k}" for i in range(count)],
        "prompt_id": ids,
        "prompt": [f"prompt {i}" for i in range(count)],
    }
    lake.create(*TABLES)
    _put(lake, CANDIDATES, pa.table({**shared, "k": [i % k for i in range(count)]}))
    refined = [None if fine else f"mended {i}" for i, fine in enumerate(aligned.tolist())]
    _put(lake, CANDIDATE_CRITIQUES, pa.table({**shared, "aligned": aligned, "refined": refined}))
    passed = np.flatnonzero(aligned)
    flat = pa.StructArray.from_arrays(
        [
            pa.array(list(checklist.ids) * len(passed)),
            pa.array(answers[passed].ravel()),
            pa.array(answers[passed].ravel().astype(float)),
        ],
        names=["question", "yes", "probability"],
    )
    offsets = pa.array(np.arange(len(passed) + 1, dtype=np.int32) * len(checklist))
    rewards = {
        "video_id": [f"video {i}" for i in passed],
        "prompt_id": [ids[i] for i in passed],
        "query_id": [f"query {i // k}" for i in passed],
        "seed": [0] * len(passed),
        "answers": pa.ListArray.from_arrays(offsets, flat),
        "score": scores[passed],
    }
    _put(lake, VIDEO_REWARDS, pa.table(rewards))


def _put(lake: Lake, table: Table, rows: pa.Table) -> None:
    for column in table.columns:
        if column.name not in rows.column_names:
            rows = rows.append_column(column.name, pa.nulls(rows.num_rows, column.type))
    rows = rows.append_column("input_id", rows[table.key])
    with lake.write({"asset": table.label}) as transaction:
        transaction.upsert(table, stamped(rows, "benchmark", "benchmark"))


def read(lake: Lake) -> tuple[pa.Table, pa.Table, pa.Table]:
    """What both sides start from, in the order in which candidates are tried."""
    candidates = lake.read(CANDIDATES, columns=["query_id", "prompt_id", "prompt"]).sort_by("prompt_id")
    critiques = lake.read(CANDIDATE_CRITIQUES, columns=["prompt_id", "aligned", "refined"])
    rewards = lake.read(VIDEO_REWARDS, columns=["video_id", "prompt_id", "answers", "score"])
    return candidates, critiques, rewards


# ---- the plain side --------------------------------------------------------------------------------------------


def plain_groups(
    candidates: list[Row], critiques: list[Row], rewards: list[Row], questions: Iterable[str]
) -> dict[str, list[Row]]:
    """Each query's candidates with their critique, score and list of answers."""
    critique_of = {row["prompt_id"]: row for row in critiques}
    reward_of = {row["prompt_id"]: row for row in rewards}
    groups: dict[str, list[Row]] = {}
    for row in candidates:
        reward = reward_of.get(row["prompt_id"])
        given = {answer["question"]: answer["yes"] for answer in reward["answers"]} if reward else {}
        answers = [int(given[question]) for question in questions] if reward else None
        more = {
            "answers": answers,
            "score": reward["score"] if reward else None,
            "video_id": reward and reward["video_id"],
        }
        groups.setdefault(row["query_id"], []).append({**row, **critique_of[row["prompt_id"]], **more})
    return groups


def all_answers_compared(one: list[int], other: list[int]) -> bool:
    """At least as good everywhere, better somewhere."""
    not_worse = [a >= b for a, b in zip(one, other, strict=True)]
    better = [a > b for a, b in zip(one, other, strict=True)]
    return all(not_worse) and any(better)


def stops_early(one: list[int], other: list[int]) -> bool:
    """The same."""
    better = False
    for a, b in zip(one, other, strict=True):
        if a < b:
            return False
        better = better or a > b
    return better


def plain_video_pairs(
    groups: dict[str, list[Row]], dominates: Callable[[list[int], list[int]], bool]
) -> list[tuple[Row, Row]]:
    """All good pairs of every query, of which the first is taken."""
    chosen = []
    for rows in groups.values():
        passed = [row for row in rows if row["aligned"] and row["answers"] is not None]
        good = [
            (one, other)
            for one in passed
            for other in passed
            if one is not other
            and dominates(one["answers"], other["answers"])
            and one["score"] - other["score"] > MARGIN
        ]
        chosen += good[:1]
    return chosen


def plain_rows(groups: dict[str, list[Row]]) -> list[Row]:
    """Text pairs and video pairs as rows; where a query has both, the text pair."""
    rows: dict[str, Row] = {}
    for one, other in plain_video_pairs(groups, all_answers_compared):
        rows[one["query_id"]] = {
            **_ided(one["query_id"], one["prompt"], other["prompt"], "video"),
            "margin": one["score"] - other["score"],
            "chosen_prompt_id": one["prompt_id"],
            "rejected_prompt_id": other["prompt_id"],
            "chosen_video_ids": [one["video_id"]],
            "rejected_video_ids": [other["video_id"]],
        }
    for query_id, candidates in groups.items():
        flawed = [row for row in candidates if not row["aligned"] and row["refined"] and "\n" not in row["refined"]]
        if flawed:
            rows[query_id] = {
                **_ided(query_id, flawed[0]["refined"], flawed[0]["prompt"], "text"),
                "margin": None,
                "chosen_prompt_id": None,
                "rejected_prompt_id": flawed[0]["prompt_id"],
                "chosen_video_ids": [],
                "rejected_video_ids": [],
            }
    return [rows[query_id] for query_id in sorted(rows)]


def _ided(query_id: str, chosen: str, rejected: str, feedback: str) -> Row:
    pair_id = content_id(query_id, feedback, chosen, rejected)
    return {"pair_id": pair_id, "query_id": query_id, "chosen": chosen, "rejected": rejected, "feedback": feedback}


# ---- both sides ------------------------------------------------------------------------------------------------


def store(lake: Lake, rows: pa.Table) -> None:
    """Put the pairs into the lake; the same on both sides."""
    messages = pa.array([[{"role": "user", "content": query}] for query in rows["query_id"].to_pylist()])
    rebuild(lake, PREFERENCE_PAIRS, rows.append_column("messages", messages), Recipe({"by": "benchmark"}), run_id="x")


def forget(lake: Lake) -> None:
    """An empty table of pairs."""
    with lake.write({"text": "start over"}) as transaction:
        transaction.execute(f"DELETE FROM {PREFERENCE_PAIRS.qualified}")


def compare(
    what: str, sides: dict[str, Callable[[], Any]], rounds: int, before: Callable[[], None] = lambda: None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The median seconds of each side, and their results."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, Any] = {}
    for _ in range(rounds):
        for name, side in sides.items():
            before()
            started = time.perf_counter()
            results[name] = side()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    ratios = {name: medians[name] / medians["arrays"] for name in sides if name != "arrays"}
    shown = {f"{name} s": f"{value:.4f}" for name, value in medians.items()}
    return {"what": what, **shown, **{f"{name} / arrays": round(value, 1) for name, value in ratios.items()}}, results


def measure(lake: Lake, checklist: Checklist, rounds: int) -> list[dict[str, Any]]:
    """The three comparisons; AssertionError where the sides do not agree."""
    tables = read(lake)
    candidates, critiques, rewards = tables
    averaged = average_rewards(rewards, checklist)
    groups = plain_groups(*(table.to_pylist() for table in tables), checklist.ids)
    joined = [row for rows in groups.values() for row in rows if row["aligned"] and row["answers"] is not None]
    ids = [row["prompt_id"] for row in joined]
    numbers = {query_id: number for number, query_id in enumerate(groups)}
    queries = np.array([numbers[row["query_id"]] for row in joined])
    row_of = {prompt_id: row for row, prompt_id in enumerate(averaged.prompt_ids)}
    rows_of = np.array([row_of[prompt_id] for prompt_id in ids])
    answers, scores, settings = averaged.answers[rows_of], averaged.scores[rows_of], PairSettings()

    def selection() -> Any:
        return dominating_pairs(queries, answers, scores, np.arange(len(ids)), settings)

    sides = {
        "arrays": selection,
        "lists": lambda: plain_video_pairs(groups, all_answers_compared),
        "stops early": lambda: plain_video_pairs(groups, stops_early),
    }
    table = []
    shown, found = compare("selection", sides, rounds)
    table.append(shown)
    listed = sorted((one["prompt_id"], other["prompt_id"]) for one, other in found["lists"])
    assert listed == sorted((one["prompt_id"], other["prompt_id"]) for one, other in found["stops early"])
    assert listed == sorted((ids[one], ids[other]) for one, other in zip(*found["arrays"], strict=True))

    sides = {
        "arrays": lambda: select_pairs(candidates, critiques, averaged, checklist).rows,
        "lists": lambda: plain_rows(groups),
    }
    shown, found = compare("rows", sides, rounds)
    table.append(shown)
    assert found["arrays"].to_pylist() == found["lists"]

    def stored_by_arrays() -> None:
        candidates, critiques, rewards = read(lake)
        store(lake, select_pairs(candidates, critiques, average_rewards(rewards, checklist), checklist).rows)

    def stored_by_lists() -> None:
        rows = plain_rows(plain_groups(*(table.to_pylist() for table in read(lake)), checklist.ids))
        store(lake, pa.Table.from_pylist(rows))

    sides = {"arrays": stored_by_arrays, "lists": stored_by_lists}
    shown, _ = compare("stored to stored", sides, rounds, before=lambda: forget(lake))
    table.append(shown)
    return table


def main() -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the lake is made")
    chosen = parser.parse_args()
    checklist = checklist_of(chosen.questions)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder, Lake(Path(folder) / "lake") as lake:
        fill(lake, chosen.queries, chosen.candidates, checklist)
        table = measure(lake, checklist, chosen.rounds)
    load = os.getloadavg()[0]
    title = f"{chosen.queries:,} queries x {chosen.candidates} x {chosen.questions}, load {load:.1f}"
    print_tables({title: [{name: str(value) for name, value in row.items()} for row in table]})
    missed = [r["what"] for r in table if r["lists / arrays"] < ALLOWED.get(r["what"], 0)]
    if missed:
        raise SystemExit(f"less than promised: {', '.join(missed)}")


if __name__ == "__main__":
    main()
