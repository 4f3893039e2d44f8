"""From raw queries to the queries worth optimizing: VPO's step 1 (arXiv 2503.20491, section 3.1).

Here: cleaning, tags, rules, languages, duplicates, diversity, splits and the safety mark, each in its own
file, put together by `curate`. Not here: reading query files (ingestion) and judging queries with a language
model.

No row is lost: a row that is not kept has keep = false and the first reason why.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ml.curation.cleaning import clean
from ml.curation.duplicates import exact_duplicates, near_duplicates
from ml.curation.language import language_of
from ml.curation.rules import RULE_REASONS, broken_rule
from ml.curation.settings import CurationSettings
from ml.curation.splits import SPLITS, split_of
from ml.curation.tags import Params, parse_tags
from ml.metrics import bleu_against, self_bleu
from ml.safety import is_unsafe

__all__ = [
    "DROP_REASONS",
    "PARAMS_TYPE",
    "QUERIES_SCHEMA",
    "SPLITS",
    "CurationResult",
    "CurationSettings",
    "Params",
    "clean",
    "curate",
    "language_of",
    "parse_tags",
    "split_of",
]

PARAMS_TYPE = pa.struct(
    [
        ("aspect_ratio", pa.string()),
        ("camera", pa.string()),
        ("motion", pa.string()),
        ("negative", pa.string()),
        ("fps", pa.float64()),
        ("guidance_scale", pa.float64()),
        ("seed", pa.int64()),
    ]
)
QUERIES_SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("query", pa.string()),
        ("params", PARAMS_TYPE),
        ("split", pa.string()),
        ("safety", pa.string()),
        ("language", pa.string()),
        ("keep", pa.bool_()),
        ("drop_reason", pa.string()),
    ]
)
NSFW_SCORES = ("toxicity", "obscene", "identity_attack", "insult", "threat", "sexual_explicit")
# In the order in which rows leave.
DROP_REASONS = (
    "empty",
    "only_tags",
    *RULE_REASONS,
    "not_english",
    "exact_duplicate",
    "near_duplicate",
    "low_diversity",
)
# A raw text is cut at this many times the allowed length before it is looked at, so that no text takes long:
# what is longer is too long even if entities shrink it.
_LONGEST_ENCODING = 8


@dataclass(frozen=True)
class CurationResult:
    """What became of the raw queries.

    rows: one per raw row, with the columns of QUERIES_SCHEMA, ordered by query_id. funnel: (reason, count)
    for every drop reason in order, then ("kept", count); the counts sum to the number of raw rows. self_bleu:
    of a sample of what is kept, None for fewer than two.
    """

    rows: pa.Table
    funnel: list[tuple[str, int]]
    self_bleu: float | None


@dataclass(frozen=True)
class _Query:
    text: str
    params: Params
    language: str
    reason: str | None


def curate(raw: pa.Table, settings: CurationSettings | None = None) -> CurationResult:
    """Curate `raw` (query_id unique, text, and where the source has them the NSFW scores 0..1).

    A query that is too long is stored cut to the allowed length; the raw table keeps it whole. The result
    depends on the set of rows, not on their order. Raises ValueError where a query_id is missing or occurs
    twice.
    """
    settings = settings or CurationSettings()
    raw = raw.set_column(raw.column_names.index("query_id"), "query_id", raw["query_id"].cast(pa.string()))
    if pc.count_distinct(raw["query_id"], mode="only_valid").as_py() != raw.num_rows:
        raise ValueError("Each raw query needs its own query_id; one is missing or occurs twice.")
    raw = raw.sort_by("query_id")
    query_ids: list[str] = raw["query_id"].to_pylist()
    queries = [_curate_one(text, settings) for text in raw["text"].to_pylist()]
    reasons = _drop_alike(query_ids, queries, settings)
    unsafe = _unsafe_by_scores(raw, settings.nsfw_threshold) | np.array(
        [is_unsafe(q.text) for q in queries], dtype=bool
    )
    rows = pa.table(
        {
            "query_id": query_ids,
            "query": [query.text for query in queries],
            "params": pa.array([query.params.as_dict() for query in queries], PARAMS_TYPE),
            "split": [split_of(query_id, settings) for query_id in query_ids],
            "safety": ["unsafe" if mark else "general" for mark in unsafe],
            "language": [query.language for query in queries],
            "keep": [reason is None for reason in reasons],
            "drop_reason": reasons,
        },
        schema=QUERIES_SCHEMA,
    )
    kept = [query.text for query, reason in zip(queries, reasons, strict=True) if reason is None]
    return CurationResult(
        rows=rows, funnel=_funnel(reasons), self_bleu=self_bleu(kept, sample=settings.diversity_sample)
    )


def _curate_one(text: str | None, settings: CurationSettings) -> _Query:
    """Everything that can be told of one query by itself."""
    limit = _LONGEST_ENCODING * settings.maximum_characters
    cut = text is not None and len(text) > limit
    cleaned = clean((text or "")[:limit])
    query, params = parse_tags(cleaned)
    if cut:
        reason: str | None = "too_long"
    elif not cleaned:
        reason = "empty"
    elif not query:
        reason = "only_tags"
    else:
        reason = broken_rule(query, settings)
    query = query[: settings.maximum_characters].rstrip()
    language = language_of(query)
    if reason is None and settings.english_only and language != "en":
        reason = "not_english"
    return _Query(query, params, language, reason)


def _drop_alike(query_ids: Sequence[str], queries: Sequence[_Query], settings: CurationSettings) -> list[str | None]:
    """The reasons of single queries, and then those that come of looking at all queries together."""
    reasons: list[str | None] = [query.reason for query in queries]

    def drop(reason: str, flags: npt.NDArray[np.bool_], positions: Sequence[int]) -> None:
        for position, flag in zip(positions, flags.tolist(), strict=True):
            if flag:
                reasons[position] = reason

    def remaining() -> tuple[list[int], list[str], list[str]]:
        positions = [position for position, reason in enumerate(reasons) if reason is None]
        return positions, [query_ids[p] for p in positions], [queries[p].text for p in positions]

    positions, ids, texts = remaining()
    drop("exact_duplicate", exact_duplicates(ids, texts), positions)
    if settings.near_duplicate_threshold is not None:
        positions, ids, texts = remaining()
        drop("near_duplicate", near_duplicates(ids, texts, settings.near_duplicate_threshold), positions)
    if settings.diversity_threshold is not None:
        positions, ids, texts = remaining()
        drop("low_diversity", _too_common(ids, texts, settings), positions)
    return reasons


def _too_common(query_ids: Sequence[str], texts: Sequence[str], settings: CurationSettings) -> npt.NDArray[np.bool_]:
    """(n,) True for queries whose n-grams nearly all occur in a sample of the others.

    The sample is chosen by a hash of the query_id; its own members stay, so that what makes others common is
    kept. Queries of fewer than four words have no 4-gram to tell them apart and stay too.
    """
    by_hash = sorted(range(len(texts)), key=lambda position: hashlib.sha256(query_ids[position].encode()).digest())
    sample = by_hash[: settings.diversity_sample]
    common = bleu_against(texts, [texts[position] for position in sample]) > (settings.diversity_threshold or 1.0)
    common[sample] = False
    common &= np.array([len(text.split()) >= 4 for text in texts], dtype=np.bool_)
    return np.asarray(common, dtype=np.bool_)


def _unsafe_by_scores(raw: pa.Table, threshold: float) -> npt.NDArray[np.bool_]:
    """(n,) True where any NSFW score of the source is above the threshold; missing scores say nothing."""
    unsafe = np.zeros(raw.num_rows, dtype=np.bool_)
    for name in NSFW_SCORES:
        if name in raw.column_names:
            scores = pc.fill_null(raw[name].cast(pa.float64()), 0.0)
            unsafe |= np.asarray(pc.greater(scores, threshold), dtype=np.bool_)
    return unsafe


def _funnel(reasons: Sequence[str | None]) -> list[tuple[str, int]]:
    counts = Counter(reasons)
    return [*((reason, counts[reason]) for reason in DROP_REASONS), ("kept", counts[None])]
