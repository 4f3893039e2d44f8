"""Selecting preference pairs against doing it as the paper's script does: all pairs, Python's lists, JSON files.

    python benchmarks/pair_selection.py                  # 10,000 queries, 4 candidates each, 64 answers a candidate

All sides get the same candidates, critiques and answers and must give the same pairs; they take turns in the same run,
and what is shown is the median round of each. A ratio is how many times faster the platform is.

    platform     ml/preference.py: arrays, answers as bits; from the lake's tables to the lake's table
    lists        a careful plain script: each query's candidates with a list of 0 and 1, every ordered pair compared in
                 all answers, the first good pair taken; rows with ids by hashlib; from the same tables of the lake,
                 read as Python's objects, to the same table by the same writer
    script       what VPO's process_data.py does (github.com/thu-coai/VPO): JSON lines in, answers as dictionaries
                 (id, question, response), a comparison that ends at the first worse answer, scores added up for each
                 pair that dominates, the first good pair taken; refined prompts and pairs are kept unless their query
                 is already in a list, looked up in that list; one JSON file out. Its shuffles are left out, so that the
                 pairs are the same

    selection        from answers in memory, in each side's own form, to which candidate is preferred to which by video
    rows             the same with text-level pairs and conflicts, to finished rows with their ids
    stored to stored from stored answers to stored pairs
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ml import templates
from ml.checklist import Checklist, Question
from ml.preference import PairSettings, PromptRewards, average_rewards, dominating_pairs, select_pairs
from storage.content import noted_version
from storage.ids import content_id
from storage.lake import Lake
from storage.recipe import Recipe, stamped
from storage.refresh import rebuild
from storage.tables import CANDIDATE_CRITIQUES, CANDIDATES, MESSAGES, PREFERENCE_PAIRS, VIDEO_REWARDS, Table
from vpo_assets.report.tables import print_tables

Row = dict[str, Any]
Tables = tuple[pa.Table, pa.Table, pa.Table]
TABLES = (CANDIDATES, CANDIDATE_CRITIQUES, VIDEO_REWARDS, PREFERENCE_PAIRS)
MARGIN = 0.5
AIMS = {("selection", "lists"): 100.0, ("stored to stored", "script"): 20.0}
OURS = "platform"
OPTIMIZE = templates.load("optimize")


TEXT = "Does the video meet what is asked for in this respect, without any fault that a viewer sees?"
"""As long as such questions are: the script's file repeats them with each answer."""


def checklist_of(questions: int) -> Checklist:
    """So many questions in a few dimensions, of a weight whose sums are exact: both sides see the same margins."""
    return Checklist(
        "big", "1", tuple(Question(f"q{i}", f"{i}. {TEXT}", f"d{i % 9}", f"s{i % 20}", 0.125) for i in range(questions))
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


def read(lake: Lake) -> Tables:
    """What both sides start from, in the order in which candidates are tried."""
    candidates = lake.read(CANDIDATES, columns=["query_id", "prompt_id", "prompt"]).sort_by("prompt_id")
    critiques = lake.read(CANDIDATE_CRITIQUES, columns=["prompt_id", "aligned", "refined"])
    rewards = lake.read(VIDEO_REWARDS, columns=["video_id", "prompt_id", "answers", "score"])
    return candidates, critiques, rewards


# ---- the plain side --------------------------------------------------------------------------------------------


def plain_groups(tables: Tables, checklist: Checklist) -> dict[str, list[Row]]:
    """Each query's candidates with their critique, score and list of answers."""
    candidates, critiques, rewards = (table.to_pylist() for table in tables)
    critique_of = {row["prompt_id"]: row for row in critiques}
    reward_of = {row["prompt_id"]: row for row in rewards}
    groups: dict[str, list[Row]] = {}
    for row in candidates:
        reward = reward_of.get(row["prompt_id"])
        given = {answer["question"]: answer["yes"] for answer in reward["answers"]} if reward else {}
        answers = [int(given[question]) for question in checklist.ids] if reward else None
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


# ---- the paper's script ------------------------------------------------------------------------------------------


def write_files(folder: Path, tables: Tables, checklist: Checklist) -> None:
    """What the script starts from: the answers about the videos of those that passed, and refinements of the others."""
    candidates, critiques, rewards = (table.to_pylist() for table in tables)
    critique_of = {row["prompt_id"]: row for row in critiques}
    answers_of = {row["prompt_id"]: row["answers"] for row in rewards}
    texts = {question.id: question.text for question in checklist.questions}
    with (folder / "answers.jsonl").open("w") as filmed, (folder / "refined.jsonl").open("w") as refined:
        for row in candidates:
            shared = {"query": row["query_id"], "prompt": row["prompt"]}
            if row["prompt_id"] in answers_of:
                given = [
                    {"id": number, "q": texts[answer["question"]], "response": "yes" if answer["yes"] else "no"}
                    for number, answer in enumerate(answers_of[row["prompt_id"]])
                ]
                print(json.dumps({**shared, "QA": given}), file=filmed)
            elif mended := critique_of[row["prompt_id"]]["refined"]:
                print(json.dumps({**shared, "refined": mended}), file=refined)


def script_reads(file: Path) -> list[Row]:
    """One JSON object a line."""
    with file.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream.readlines()]


def script_groups(filmed: list[Row]) -> dict[str, list[Row]]:
    """Candidates by query."""
    groups: dict[str, list[Row]] = {}
    for row in filmed:
        groups.setdefault(row["query"], []).append(row)
    return groups


def script_dominates(one: list[Row], other: list[Row]) -> bool:
    """At least as good everywhere, better somewhere; ends at the first answer that is worse."""
    better = 0
    for mine, theirs in zip(one, other, strict=True):
        assert mine["id"] == theirs["id"]
        if mine["response"] != theirs["response"]:
            if mine["response"] != "yes":
                return False
            better += 1
    return better > 0


def script_score(answers: list[Row], weights: list[float]) -> float:
    """The sum of the weights of what is answered with yes."""
    said = [1 if answer["response"] == "yes" else 0 for answer in answers]
    return sum(yes * weight for yes, weight in zip(said, weights, strict=True))


def script_video_pair(rows: list[Row], weights: list[float]) -> tuple[Row, Row] | None:
    """The first good pair of a query."""
    for one in rows:
        for other in rows:
            if one is other or not script_dominates(one["QA"], other["QA"]):
                continue
            if script_score(one["QA"], weights) - script_score(other["QA"], weights) > MARGIN:
                return one, other
    return None


def script_video_pairs(groups: dict[str, list[Row]], weights: list[float]) -> list[tuple[Row, Row]]:
    """At most one for each query."""
    found = [script_video_pair(rows, weights) for rows in groups.values()]
    return [pair for pair in found if pair is not None]


def script_example(query: str, chosen: str, rejected: str) -> Row:
    """An example as trainers take it."""
    return {
        "messages": OPTIMIZE.messages(query=query),
        "chosen": {"role": "assistant", "content": chosen.strip()},
        "rejected": {"role": "assistant", "content": rejected.strip()},
    }


def script(folder: Path, weights: list[float]) -> list[Row]:
    """From file to file; what was written."""
    pairs = script_video_pairs(script_groups(script_reads(folder / "answers.jsonl")), weights)
    by_video = [script_example(one["query"], one["prompt"], other["prompt"]) for one, other in pairs]
    by_text, seen = [], []
    for row in script_reads(folder / "refined.jsonl"):
        if row["query"] in seen:
            continue
        seen.append(row["query"])
        if "\n" not in row["refined"]:
            by_text.append(script_example(row["query"], row["refined"], row["prompt"]))
    kept, asked = [], []
    for example in by_text + by_video:
        if example["messages"] in asked:
            continue
        kept.append(example)
        asked.append(example["messages"])
    with (folder / "pairs.json").open("w", encoding="utf-8") as stream:
        json.dump(kept, stream, indent=4, ensure_ascii=False)
    return kept


# ---- all sides ---------------------------------------------------------------------------------------------------


def store(lake: Lake, rows: pa.Table) -> None:
    """Put the pairs into the lake; the same for the platform and for lists."""
    messages = [OPTIMIZE.messages(query=query) for query in rows["query_id"].to_pylist()]
    rows = rows.append_column("messages", pa.array(messages, MESSAGES))
    rebuild(lake, PREFERENCE_PAIRS, rows, Recipe({"by": "benchmark"}), run_id="x")


def forget(lake: Lake) -> None:
    """An empty table of pairs, known to be empty."""
    with lake.write({"text": "start over"}) as transaction:
        transaction.execute(f"DELETE FROM {PREFERENCE_PAIRS.qualified}")
    noted_version(lake, PREFERENCE_PAIRS)


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
    ratios = {name: medians[name] / medians[OURS] for name in sides if name != OURS}
    shown = {f"{name} s": f"{value:.4f}" for name, value in medians.items()}
    return {"what": what, **shown, **{f"{name} / {OURS}": round(value, 1) for name, value in ratios.items()}}, results


def measure(lake: Lake, folder: Path, checklist: Checklist, rounds: int) -> list[dict[str, Any]]:
    """The three comparisons; AssertionError where the sides do not agree."""
    weights = checklist.weights.tolist()
    tables = read(lake)
    write_files(folder, tables, checklist)
    candidates, critiques, rewards = tables
    averaged = average_rewards(rewards, checklist)
    table = [_selection(tables, averaged, checklist, script_groups(script_reads(folder / "answers.jsonl")), rounds)]

    groups = plain_groups(tables, checklist)
    sides: dict[str, Callable[[], Any]] = {
        OURS: lambda: select_pairs(candidates, critiques, averaged, checklist).rows,
        "lists": lambda: plain_rows(groups),
    }
    shown, found = compare("rows", sides, rounds)
    table.append(shown)
    assert found[OURS].to_pylist() == found["lists"]

    def stored_by_platform() -> None:
        candidates, critiques, rewards = read(lake)
        store(lake, select_pairs(candidates, critiques, average_rewards(rewards, checklist), checklist).rows)

    def stored_by_lists() -> None:
        rows = plain_rows(plain_groups(read(lake), checklist))
        store(lake, pa.Table.from_pylist(rows))

    sides = {"lists": stored_by_lists, "script": lambda: script(folder, weights), OURS: stored_by_platform}
    shown, found = compare("stored to stored", sides, rounds, before=lambda: forget(lake))
    table.append(shown)
    stored = lake.read(PREFERENCE_PAIRS).to_pylist()
    assert _as_examples(stored) == sorted(
        (row["messages"][-1]["content"], row["chosen"]["content"], row["rejected"]["content"])
        for row in found["script"]
    )
    return table


def _as_examples(rows: list[Row]) -> list[tuple[str, str, str]]:
    return sorted((row["messages"][-1]["content"], row["chosen"], row["rejected"]) for row in rows)


def _selection(
    tables: Tables,
    averaged: PromptRewards,
    checklist: Checklist,
    filmed: dict[str, list[Row]],
    rounds: int,
) -> dict[str, Any]:
    groups = plain_groups(tables, checklist)
    joined = [row for rows in groups.values() for row in rows if row["aligned"] and row["answers"] is not None]
    ids = [row["prompt_id"] for row in joined]
    numbers = {query_id: number for number, query_id in enumerate(groups)}
    queries = np.array([numbers[row["query_id"]] for row in joined])
    row_of = {prompt_id: row for row, prompt_id in enumerate(averaged.prompt_ids.to_pylist())}
    rows_of = np.array([row_of[prompt_id] for prompt_id in ids])
    answers, scores, settings = averaged.answers[rows_of], averaged.scores[rows_of], PairSettings()
    weights = checklist.weights.tolist()
    sides: dict[str, Callable[[], Any]] = {
        OURS: lambda: dominating_pairs(queries, answers, scores, np.arange(len(ids)), settings),
        "lists": lambda: plain_video_pairs(groups, all_answers_compared),
        "lists that stop early": lambda: plain_video_pairs(groups, stops_early),
        "script": lambda: script_video_pairs(filmed, weights),
    }
    shown, found = compare("selection", sides, rounds)
    listed = sorted((one["prompt_id"], other["prompt_id"]) for one, other in found["lists"])
    assert listed == sorted((one["prompt_id"], other["prompt_id"]) for one, other in found["lists that stop early"])
    assert listed == sorted((ids[one], ids[other]) for one, other in zip(*found[OURS], strict=True))
    prompts = sorted((one["prompt"], other["prompt"]) for one, other in found["lists"])
    assert prompts == sorted((one["prompt"], other["prompt"]) for one, other in found["script"])
    return shown


def main() -> None:
    """Fill, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the lake and the files are made")
    chosen = parser.parse_args()
    checklist = checklist_of(chosen.questions)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder, Lake(Path(folder) / "lake") as lake:
        fill(lake, chosen.queries, chosen.candidates, checklist)
        table = measure(lake, Path(folder), checklist, chosen.rounds)
    load = os.getloadavg()[0]
    title = f"{chosen.queries:,} queries x {chosen.candidates} x {chosen.questions}, load {load:.1f}"
    for row in table:
        print_tables({f"{row['what']} ({title})": [{"what": name, "value": str(row[name])} for name in row][1:]})
    missed = [
        f"{row['what']} against {side}"
        for row in table
        for (what, side), aim in AIMS.items()
        if row["what"] == what and row[f"{side} / {OURS}"] < aim
    ]
    if missed:
        raise SystemExit(f"less than promised: {', '.join(missed)}")


if __name__ == "__main__":
    main()
