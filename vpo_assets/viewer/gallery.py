"""The evaluation as a gallery: one held-out query a row, one clip a method.

Belongs here: reading held-out prompts and clips. Does not belong here: the figures of the evaluation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from storage.tables import EVAL_CRITIQUES, EVAL_PROMPTS, QUERIES
from vpo_assets.viewer.filters import PAGE_ROWS, QueryFilter, contains_words
from vpo_assets.viewer.pairs import gains
from vpo_assets.viewer.results import Results, Row, ShownClip, Source, clip_of

COMPARED = ("vpo", "original")
"""Whose gain over whose queries are ordered by."""


@dataclass(frozen=True)
class ShownMethod:
    """What one method made of a query; `clip` is that of the chosen seed, None where there is none."""

    method: str
    prompt: str
    prompt_id: str
    policy: str | None
    verdict: str | None
    critique: str | None
    clip: ShownClip | None


@dataclass(frozen=True)
class ShownQuery:
    """A held-out query and every method's clip. `gains`: of the last method over the first, over all seeds."""

    query_id: str
    query: str
    safety: str | None
    methods: Sequence[ShownMethod]
    gains: Mapping[str, float]
    source: Source | None


@dataclass(frozen=True)
class QueryPage:
    """Some held-out queries of all `found`, of the `total` that were filmed; `compared`: whose gain over whose."""

    queries: Sequence[ShownQuery]
    found: int
    total: int
    seeds: int
    compared: tuple[str, str]


def query_page(results: Results, wanted: QueryFilter, rows: int = PAGE_ROWS) -> QueryPage:
    """One page of the held-out queries that pass a filter. `rows`: so many on it."""
    text, words = contains_words("q.query, q.query_id, g.prompts", wanted.words)
    value = "list_filter(dimensions, lambda d: d.dimension = ?)[1].score" if wanted.dimension else "score"
    source = (
        f"FROM (SELECT query_id, string_agg(prompt, ' ') AS prompts, avg(value) FILTER (method = ?) "
        f"- avg(value) FILTER (method = ?) AS gain FROM (SELECT *, {value} AS value FROM ({results.filmed})) "
        f"GROUP BY query_id) AS g JOIN {QUERIES.qualified} AS q ON q.query_id = g.query_id WHERE {text}"
    )
    parameters: list[Any] = [*COMPARED, *([wanted.dimension] if wanted.dimension else []), *([words] if words else [])]
    order = {"": "", "gain": "g.gain DESC NULLS LAST, ", "loss": "g.gain NULLS LAST, "}[wanted.order]
    found = int(results.lake.query(f"SELECT count(*) AS n {source}", parameters)["n"][0].as_py())
    page = results.lake.query(
        f"SELECT q.query_id, q.query, q.safety {source} ORDER BY {order}q.query_id LIMIT ? OFFSET ?",
        [*parameters, rows, wanted.first_row],
    ).to_pylist()
    (all_of_it,) = results.lake.query(
        "SELECT count(DISTINCT query_id) AS total, coalesce(max(seeds), 0) AS seeds FROM "
        f"(SELECT query_id, count(DISTINCT seed) AS seeds FROM ({results.filmed}) GROUP BY query_id)"
    ).to_pylist()
    return QueryPage(_shown(results, page, wanted.seed), found, all_of_it["total"], all_of_it["seeds"], COMPARED)


def _shown(results: Results, queries: Sequence[Row], seed: int) -> list[ShownQuery]:
    ids = [row["query_id"] for row in queries]
    prompts = results.rows_by(EVAL_PROMPTS.at(results.target), "query_id", ids)
    critiques = results.rows_by(EVAL_CRITIQUES.at(results.target), "query_id", ids)
    judged = {row["prompt_id"]: row for row in critiques}
    written = {row["prompt_id"]: row for row in prompts}
    filmed = results.lake.query(
        f"SELECT * FROM ({results.filmed}) WHERE query_id IN (SELECT unnest(?::VARCHAR[])) ORDER BY seed", [ids]
    ).to_pylist()
    clips: dict[tuple[str, str], list[Row]] = {}
    for row in filmed:
        clips.setdefault((row["query_id"], row["method"]), []).append(row)
    sources = results.sources(ids)
    shown = []
    for query in queries:
        name = query["query_id"]
        made = {method: rows for method in results.methods if (rows := clips.get((name, method)))}
        gained = gains(*([clip_of(row) for row in made.get(method, ())] for method in COMPARED))
        shown.append(
            ShownQuery(
                name,
                query["query"],
                query["safety"],
                [_method(method, rows, seed, written, judged) for method, rows in made.items()],
                gained,
                sources.get(name),
            )
        )
    return shown


def _method(
    method: str, rows: Sequence[Row], seed: int, written: Mapping[str, Row], judged: Mapping[str, Row]
) -> ShownMethod:
    row = rows[seed - 1] if seed <= len(rows) else None
    prompt_id = (row or rows[0])["prompt_id"]
    critique = judged.get(prompt_id, {})
    return ShownMethod(
        method,
        (row or rows[0])["prompt"],
        prompt_id,
        written.get(prompt_id, {}).get("policy"),
        critique.get("verdict"),
        critique.get("critique"),
        clip_of(row) if row else None,
    )
