"""Preference pairs from text-level and video-level feedback: VPO's steps 6 to 8 (arXiv 2503.20491, section
3.3).

Here: which candidate is preferred to which. Not here: the critiques and rewards themselves, the chat messages
around a pair, and the training on pairs (ml/dpo.py).

Everything is done on arrays: candidates of a query side by side in a padded (queries, K) block, all ordered
pairs of a query compared at once.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from ml.checklist import Checklist

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

# Averages and weighted shares carry rounding noise; differences below this are none.
ROUNDING = 1e-9
# Largest block of comparisons (queries * K * K * groups) held in memory at once.
_LARGEST_BLOCK = 8_000_000
_LINE_BREAK = "[\n\r\\x{0b}\\x{0c}\\x{1c}-\\x{1e}\\x{85}\\x{2028}\\x{2029}]"

PAIR_SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string()),
        pa.field("query_id", pa.string()),
        pa.field("chosen", pa.string()),
        pa.field("rejected", pa.string()),
        pa.field("feedback", pa.string()),
        pa.field("margin", pa.float64()),
        pa.field("chosen_prompt_id", pa.string()),
        pa.field("rejected_prompt_id", pa.string()),
        pa.field("chosen_video_ids", pa.list_(pa.string())),
        pa.field("rejected_video_ids", pa.list_(pa.string())),
    ]
)


class PairSettings(BaseModel):
    """How pairs are selected. The defaults are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dominance: Literal["question", "sub_dimension", "dimension", "none"] = Field(
        default="question",
        description="Level at which the chosen video must be at least as good everywhere, better somewhere.",
    )
    margin: float = Field(
        default=0.5, ge=0, description="The chosen score must exceed the rejected one by more than this."
    )
    choice: Literal["first", "best"] = Field(
        default="first",
        description="Which of several video-level pairs of a query: the first found or the widest margin.",
    )
    feedback: Literal["both", "text", "video"] = Field(
        default="both", description="Which kinds of feedback make pairs."
    )
    dominance_tolerance: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Differences of a share up to this count as none (for averages over few seeds).",
    )


@dataclass(frozen=True)
class PromptRewards:
    """What the videos of each prompt earned, averaged over seeds.

    prompt_ids (n,) text, unique; answers (n, questions) share of yes 0..1 in the order of the checklist, or plain yes
    and no; scores (n,) on the checklist's scale; video_ids (n,) lists of text, the videos that were averaged.
    """

    prompt_ids: pa.Array
    answers: Floats | Booleans
    scores: Floats
    video_ids: pa.ListArray

    def __post_init__(self) -> None:
        lengths = {len(self.prompt_ids), len(self.answers), len(self.scores), len(self.video_ids)}
        if len(lengths) != 1:
            raise ValueError(
                f"Rewards need one row per prompt in every column; the columns have {sorted(lengths)} rows."
            )
        if pc.count_distinct(self.prompt_ids).as_py() != len(self.prompt_ids):
            raise ValueError("Rewards must be averaged to one row per prompt; a prompt_id occurs twice.")
        if not np.isfinite(self.scores).all():
            raise ValueError("A reward score is not a finite number.")


@dataclass(frozen=True)
class PairCounts:
    """What became of the candidates, for people to look at."""

    queries: int
    candidates: int
    passed: int
    flawed: int
    without_critique: int
    passed_without_reward: int
    refinements_missing: int
    refinements_with_line_break: int
    refinements_unchanged: int
    text_pairs: int
    video_pairs: int
    video_pairs_replaced_by_text: int


@dataclass(frozen=True)
class PairSelection:
    """rows: a table with the columns of PAIR_SCHEMA, at most one row per query, ordered by query_id."""

    rows: pa.Table
    counts: PairCounts


def average_rewards(
    video_rewards: pa.Table, checklist: Checklist, *, use: Literal["yes", "probability"] = "yes"
) -> PromptRewards:
    """Average the rewards of a prompt's videos (one per seed).

    `video_rewards` has video_id, prompt_id, score and answers (list of struct question, yes, probability).
    Answers may come in any order; each video must answer every question of the checklist exactly once,
    otherwise ValueError.
    """
    matrix = _answers(video_rewards, checklist, use)
    prompts = video_rewards["prompt_id"].combine_chunks().dictionary_encode()
    group = np.asarray(prompts.indices, dtype=np.int64)
    size = np.bincount(group, minlength=len(prompts.dictionary))
    # The rows of a prompt one after the other, its videos in the order of their ids.
    video_ids = video_rewards["video_id"].cast(pa.string()).combine_chunks()
    order = np.lexsort((np.asarray(pc.rank(video_ids, tiebreaker="first")), group))
    starts = np.concatenate([[0], np.cumsum(size)])
    answers: Floats | Booleans = matrix[order]
    if len(order) != len(size):
        answers = np.add.reduceat(answers, starts[:-1], axis=0, dtype=np.float64) / size[:, None]
    scores = np.bincount(group, weights=np.asarray(video_rewards["score"], dtype=np.float64), minlength=len(size))
    return PromptRewards(
        prompt_ids=prompts.dictionary,
        answers=answers,
        scores=scores / size,
        video_ids=pa.ListArray.from_arrays(starts.astype(np.int32), video_ids.take(pa.array(order))),
    )


def _answers(video_rewards: pa.Table, checklist: Checklist, use: Literal["yes", "probability"]) -> Floats | Booleans:
    """(videos, questions) in the order of the checklist, each question answered once."""
    questions, videos = len(checklist), video_rewards.num_rows
    answers = video_rewards["answers"].combine_chunks()
    counts = np.asarray(pc.fill_null(pc.list_value_length(answers), 0), dtype=np.int64)
    flat = pc.list_flatten(answers)
    asked = pc.struct_field(flat, "question")
    columns = pc.index_in(asked, value_set=pa.array(checklist.ids, pa.string()))
    if columns.null_count:
        unknown = asked.filter(pc.is_null(columns))[0].as_py()
        raise ValueError(f"A reward answers {unknown!r}, which the checklist {checklist.name!r} does not ask.")
    values = pc.struct_field(flat, use)
    if values.null_count or (use == "probability" and pc.any(pc.is_nan(values)).as_py()):
        raise ValueError(f"A reward has an answer without {use!r}.")
    wrong = counts != questions
    if not wrong.any():
        given, rows = np.asarray(columns).reshape(videos, questions), values.to_numpy(zero_copy_only=False)
        matrix: Floats | Booleans = rows.reshape(videos, questions)
        in_order = np.arange(questions)
        if np.array_equal(given, np.broadcast_to(in_order, given.shape)):
            return matrix
        order = np.argsort(given, axis=1)
        wrong = (np.take_along_axis(given, order, axis=1) != in_order).any(axis=1)
        if not wrong.any():
            return cast("Floats | Booleans", np.take_along_axis(matrix, order, axis=1))
    first = int(np.flatnonzero(wrong)[0])
    raise ValueError(
        f"The reward of video {video_rewards['video_id'][first].as_py()} must answer each of the "
        f"{questions} questions once; it gives {counts[first]} answers."
    )


def select_pairs(
    candidates: pa.Table,
    critiques: pa.Table,
    rewards: PromptRewards | None,
    checklist: Checklist,
    settings: PairSettings | None = None,
) -> PairSelection:
    """Preference pairs, at most one per query.

    candidates: query_id, prompt_id, prompt; the order of a query's rows is the order in which pairs are
    tried. critiques: prompt_id, aligned, refined. rewards: averaged over seeds, None when there is no
    video-level feedback.

    Text level: the first candidate of a query that the judge found flawed and whose refinement can be used
    (not empty, without a line break, different from the candidate) is rejected in favour of that refinement.
    Video level: among candidates that passed the judge, i is preferred to j if it is at least as good on
    every question (or group, see settings), better on one or more, and score(i) - score(j) > margin. Where a
    query has both, the text pair is taken.

    `chosen_prompt_id` and `margin` of a text pair are null: a refinement is no candidate and has no score.
    Raises ValueError for ids that occur twice.
    """
    settings = settings or PairSettings()
    ordered = _join(candidates, critiques)
    text, counts = _text_pairs(ordered)
    video = _video_pairs(ordered, rewards, checklist, settings)
    text = text if settings.feedback != "video" else text.slice(0, 0)
    video = video if settings.feedback != "text" else video.slice(0, 0)
    kept = video.filter(pc.invert(pc.is_in(video["query_id"], value_set=text["query_id"].combine_chunks())))
    rows = pa.concat_tables([text, kept]).sort_by("query_id")
    return PairSelection(
        rows=rows,
        counts=PairCounts(
            queries=pc.count_distinct(ordered["query_id"]).as_py(),
            candidates=candidates.num_rows,
            passed=pc.sum(pc.equal(ordered["aligned"], True)).as_py() or 0,
            flawed=pc.sum(pc.equal(ordered["aligned"], False)).as_py() or 0,
            without_critique=ordered["aligned"].null_count,
            passed_without_reward=_passed_without_reward(ordered, rewards),
            text_pairs=text.num_rows,
            video_pairs=kept.num_rows,
            video_pairs_replaced_by_text=video.num_rows - kept.num_rows,
            **counts,
        ),
    )


def _join(candidates: pa.Table, critiques: pa.Table) -> pa.Table:
    """Candidates with their critique beside them, in the order given."""
    for name, table in (("candidates", candidates), ("critiques", critiques)):
        if pc.count_distinct(table["prompt_id"].cast(pa.string()), mode="only_valid").as_py() != table.num_rows:
            raise ValueError(f"A prompt_id occurs twice or is missing among the {name}.")
    judged = critiques["prompt_id"].cast(pa.string()).combine_chunks()
    position = pc.index_in(candidates["prompt_id"].cast(pa.string()), value_set=judged)
    return pa.table(
        {
            "query_id": candidates["query_id"].cast(pa.string()),
            "prompt_id": candidates["prompt_id"].cast(pa.string()),
            "prompt": candidates["prompt"].cast(pa.string()),
            "aligned": critiques["aligned"].cast(pa.bool_()).combine_chunks().take(position),
            "refined": critiques["refined"].cast(pa.string()).combine_chunks().take(position),
        }
    )


def _text_pairs(ordered: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    flawed = ordered.filter(pc.equal(ordered["aligned"], False))
    blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(flawed["refined"]), ""), True)
    refined = flawed.filter(pc.invert(blank))
    broken = pc.match_substring_regex(refined["refined"], _LINE_BREAK)
    whole = refined.filter(pc.invert(broken))
    same = pc.equal(pc.utf8_trim_whitespace(whole["refined"]), pc.utf8_trim_whitespace(whole["prompt"]))
    usable = whole.filter(pc.invert(same))
    counts = {
        "refinements_missing": flawed.num_rows - refined.num_rows,
        "refinements_with_line_break": refined.num_rows - whole.num_rows,
        "refinements_unchanged": whole.num_rows - usable.num_rows,
    }
    first = usable.take(pa.array(_first_of_each(usable["query_id"])))
    nothing = pa.array([[]] * first.num_rows, pa.list_(pa.string()))
    rows = _pair_table(
        feedback="text",
        query_ids=first["query_id"],
        chosen=first["refined"],
        rejected=first["prompt"],
        margins=pa.nulls(first.num_rows, pa.float64()),
        chosen_prompt_ids=pa.nulls(first.num_rows, pa.string()),
        rejected_prompt_ids=first["prompt_id"],
        chosen_video_ids=nothing,
        rejected_video_ids=nothing,
    )
    return rows, counts


def _first_of_each(query_ids: pa.ChunkedArray) -> Integers:
    """Positions of the first row of each query, in row order."""
    codes = _codes(query_ids)
    return np.sort(np.unique(codes, return_index=True)[1]).astype(np.int64)


def _passed_without_reward(ordered: pa.Table, rewards: PromptRewards | None) -> int:
    known = rewards.prompt_ids if rewards else pa.array([], pa.string())
    passed = ordered.filter(pc.equal(ordered["aligned"], True))
    rewarded = pc.sum(pc.is_in(passed["prompt_id"], value_set=known)).as_py() or 0
    return int(passed.num_rows - rewarded)


def _video_pairs(
    ordered: pa.Table, rewards: PromptRewards | None, checklist: Checklist, settings: PairSettings
) -> pa.Table:
    if rewards is None or not len(rewards.prompt_ids):
        return PAIR_SCHEMA.empty_table()
    reward_row = pc.index_in(ordered["prompt_id"], value_set=rewards.prompt_ids)
    eligible = pc.fill_null(pc.and_(pc.equal(ordered["aligned"], True), pc.is_valid(reward_row)), False)
    passed = ordered.filter(eligible)
    row_of = np.asarray(reward_row.filter(eligible), dtype=np.int64)
    levels = _levels(rewards, checklist, settings)[row_of]
    scores = np.asarray(rewards.scores, dtype=np.float64)[row_of]
    prompts = _codes(pc.utf8_trim_whitespace(passed["prompt"]))
    better, worse = dominating_pairs(_codes(passed["query_id"]), levels, scores, prompts, settings)
    chosen, rejected = passed.take(pa.array(better)), passed.take(pa.array(worse))
    return _pair_table(
        feedback="video",
        query_ids=chosen["query_id"],
        chosen=chosen["prompt"],
        rejected=rejected["prompt"],
        margins=pa.array(scores[better] - scores[worse]),
        chosen_prompt_ids=chosen["prompt_id"],
        rejected_prompt_ids=rejected["prompt_id"],
        chosen_video_ids=rewards.video_ids.take(pa.array(row_of[better])),
        rejected_video_ids=rewards.video_ids.take(pa.array(row_of[worse])),
    )


def _codes(texts: pa.ChunkedArray) -> Integers:
    """(n,) a number for each text, equal where texts are."""
    return np.asarray(texts.combine_chunks().dictionary_encode().indices, dtype=np.int64)


def _levels(rewards: PromptRewards, checklist: Checklist, settings: PairSettings) -> Floats | Booleans:
    """(n, groups) what dominance is asked of; no column when it is not asked."""
    if settings.dominance == "question" and rewards.answers.dtype == np.bool_:
        return rewards.answers
    shares = checklist.group_shares(rewards.answers, "question" if settings.dominance == "none" else settings.dominance)
    return shares[:, :0] if settings.dominance == "none" else shares


def _blocks(codes: Integers, groups: int) -> Iterator[Integers]:
    """(queries, K) positions of the candidates of each query, -1 where a query has fewer.

    Queries with equally many candidates share a block, so one query with many does not widen all others.
    """
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes) if codes.size else np.zeros(0, dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if sizes.size else sizes
    for size in np.unique(sizes):
        if size < 2:
            continue
        block = order[starts[sizes == size][:, None] + np.arange(size)]
        step = max(1, _LARGEST_BLOCK // int(size * size * max(groups, 1)))
        for begin in range(0, len(block), step):
            yield block[begin : begin + step]


def dominating_pairs(
    queries: Integers, levels: Floats | Booleans, scores: Floats, prompts: Integers, settings: PairSettings
) -> tuple[Integers, Integers]:
    """Positions of the chosen and of the rejected candidates by video-level feedback, one pair per query that has one.

    queries (n,) and prompts (n,): numbers from 0, equal for candidates of one query and for candidates of the same
    words, which are no pair. levels (n, groups): what dominance is asked of. scores (n,).
    """
    blocks = _blocks(queries, levels.shape[1])
    better, worse = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    dominates = None if settings.dominance == "none" else _dominance(levels, settings.dominance_tolerance)
    for block in blocks:
        margins = scores[block][:, :, None] - scores[block][:, None, :]
        valid = margins > settings.margin + ROUNDING
        valid &= prompts[block][:, :, None] != prompts[block][:, None, :]
        if dominates is not None:
            # Margins are cheap, and rule out half of the pairs and more.
            query, one, other = np.nonzero(valid)
            valid[query, one, other] = dominates(block[query, one], block[query, other])
        size = block.shape[1]
        flat = valid.reshape(len(block), size * size)
        if settings.choice == "first":
            pick = flat.argmax(axis=1)
        else:
            pick = np.where(flat, margins.reshape(flat.shape), -np.inf).argmax(axis=1)
        found = np.flatnonzero(flat.any(axis=1))
        better.append(block[found, pick[found] // size])
        worse.append(block[found, pick[found] % size])
    return np.concatenate(better), np.concatenate(worse)


def _dominance(levels: Floats | Booleans, tolerance: float) -> Callable[[Integers, Integers], Booleans]:
    """A function of two equally long arrays of positions: whether each of the first is at least as good as its
    partner in every group, and better in one. Plain yes and no (one video a prompt) are compared 64 at a time.
    """
    plain = levels.dtype == np.bool_
    yes: Booleans = np.asarray(levels if plain else levels > 0.5, dtype=np.bool_)
    if tolerance + ROUNDING < 1 and (plain or np.array_equal(levels, yes)):
        packed = np.zeros((len(levels), -(-levels.shape[1] // 64) * 8), dtype=np.uint8)
        packed[:, : -(-levels.shape[1] // 8)] = np.packbits(yes, axis=1)
        bits = packed.view(np.uint64)
        return lambda one, other: _more_bits(bits[one], bits[other])
    shares = levels.astype(np.float64, copy=False)
    return lambda one, other: _dominates(shares[one] - shares[other], tolerance)


def _more_bits(one: npt.NDArray[np.uint64], other: npt.NDArray[np.uint64]) -> Booleans:
    """(n, words) twice -> (n,): one has every bit that the other has, and is not the same."""
    missing, more = (other & ~one).any(axis=1), (one & ~other).any(axis=1)
    return np.asarray(~missing & more, dtype=np.bool_)


def _dominates(difference: Floats, tolerance: float) -> Booleans:
    """(n, groups) -> (n,): nowhere below zero, somewhere above."""
    least, most = difference.min(axis=1), difference.max(axis=1)
    return np.asarray((least >= -tolerance - ROUNDING) & (most > tolerance + ROUNDING), dtype=np.bool_)


def _pair_table(
    *,
    feedback: str,
    query_ids: pa.ChunkedArray,
    chosen: pa.ChunkedArray,
    rejected: pa.ChunkedArray,
    margins: pa.Array,
    chosen_prompt_ids: pa.Array | pa.ChunkedArray,
    rejected_prompt_ids: pa.ChunkedArray,
    chosen_video_ids: pa.ListArray,
    rejected_video_ids: pa.ListArray,
) -> pa.Table:
    pairs = zip(query_ids.to_pylist(), chosen.to_pylist(), rejected.to_pylist(), strict=True)
    columns = [
        pa.array([_pair_id(query_id, feedback, better, worse) for query_id, better, worse in pairs], pa.string()),
        query_ids,
        chosen,
        rejected,
        pa.repeat(pa.scalar(feedback), len(query_ids)),
        margins,
        chosen_prompt_ids,
        rejected_prompt_ids,
        chosen_video_ids,
        rejected_video_ids,
    ]
    return pa.Table.from_arrays(columns, schema=PAIR_SCHEMA)


def _pair_id(*parts: str) -> str:
    """24 hex digits from the content of a pair; each part with its length, so that ("ab", "c") is not ("a",
    "bc").
    """
    encoded = [part.encode() for part in parts]
    return hashlib.sha256(b"".join(b"%d:%b" % (len(part), part) for part in encoded)).hexdigest()[:24]
