"""Who is asked to compare what: two methods' clips of one held-out query, in an order of everyone's own.

Belongs here: which comparisons there are, and each annotator's order and sides. Does not belong here: storing votes
(voting.py).

Every annotator may compare everything, each comparison once. Every third question comes from an order that is the same
for all, so that what people have in common grows with the votes of the slowest, and agreement can be told; the others
come from an order of the annotator's own, so that together they see much. In both orders the pairs of methods take
turns. All of it follows from names and ids: nothing is drawn, and nothing need be kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from storage.ids import content_id, seed_of
from storage.tables import EVAL_PROMPTS, QUERIES
from vpo_assets.report.plain_text import one_line
from vpo_assets.viewer.results import Results, Row

SHARED_EVERY = 3


@dataclass(frozen=True)
class Candidate:
    """A clip that can be voted for, and where it came from."""

    video_id: str
    uri: str
    method: str
    policy: str | None


@dataclass(frozen=True)
class Comparison:
    """Two methods' clips of one query, filmed with the same seed."""

    comparison_id: str
    query_id: str
    query: str
    first: Candidate
    second: Candidate

    @property
    def methods(self) -> tuple[str, str]:
        return self.first.method, self.second.method

    def sides(self, annotator: str) -> tuple[Candidate, Candidate]:
        """Left and right for this annotator: always the same, and random over comparisons and annotators."""
        swapped = seed_of("side", annotator, self.comparison_id) % 2
        return (self.second, self.first) if swapped else (self.first, self.second)


class UnknownMethod(ValueError):
    """Methods that cannot be compared; says which there are."""


class NothingToCompare(LookupError):
    """There are no two methods' clips of a held-out query; says what makes them."""


def chosen_methods(results: Results, names: str | None) -> list[str] | None:
    """Methods from a list with commas; None for all. Raises UnknownMethod."""
    if names is None:
        return None
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in results.methods]
    if unknown or len(set(chosen)) < 2:
        wrong = f"there is no method {one_line(unknown[0], 40)!r}" if unknown else "comparing takes two methods"
        raise UnknownMethod(f"{wrong}: name some of {', '.join(results.methods)}")
    return chosen


def comparisons(results: Results, methods: Sequence[str] | None = None) -> dict[str, Comparison]:
    """All comparisons of these methods, all for None, by their ids. Raises NothingToCompare.

    Of a query's seeds one is shown. Clips that are the same to the last byte are not compared, and unsafe queries are
    not asked about: there the better clip is the one that does not show what was asked for.
    """
    rows = results.lake.query(
        f"SELECT v.query_id, q.query, v.method, v.video_id, v.uri, v.sha256, v.seed, p.policy FROM ({results.filmed}) "
        f"AS v JOIN {QUERIES.qualified} AS q ON q.query_id = v.query_id "
        f"LEFT JOIN {EVAL_PROMPTS.at(results.target).qualified} AS p ON p.prompt_id = v.prompt_id "
        "WHERE q.safety IS DISTINCT FROM 'unsafe' ORDER BY v.query_id, v.seed"
    ).to_pylist()
    known = results.methods if methods is None else [name for name in results.methods if name in methods]
    by_query: dict[str, list[Row]] = {}
    for row in rows:
        by_query.setdefault(row["query_id"], []).append(row)
    found = [made for one in by_query.values() for made in _of_query(one, known)]
    if not found:
        raise NothingToCompare(
            f"target {results.target} has no two methods' videos of a held-out query to compare: run "
            f"`vpo materialize` up to {results.target}/eval_videos, with queries in the test split"
        )
    return {one.comparison_id: one for one in found}


def _of_query(rows: Sequence[Row], methods: Sequence[str]) -> Iterator[Comparison]:
    by_method: dict[str, dict[int, Row]] = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[row["seed"]] = row
    for first, second in combinations([name for name in methods if name in by_method], 2):
        shared = [seed for seed in by_method[first] if seed in by_method[second]]
        if not shared:
            continue
        one, other = by_method[first][shared[0]], by_method[second][shared[0]]
        if one["sha256"] != other["sha256"]:
            identifier = content_id("comparison", *sorted((one["video_id"], other["video_id"])))
            yield Comparison(identifier, one["query_id"], one["query"], _candidate(one), _candidate(other))


def _candidate(row: Row) -> Candidate:
    return Candidate(row["video_id"], row["uri"], row["method"], row["policy"])


def assignment(found: Sequence[Comparison], annotator: str) -> list[Comparison]:
    """All comparisons in the order in which this annotator is asked."""
    shared, own = _in_turns(found, ""), _in_turns(found, annotator)
    ordered: dict[str, Comparison] = {}
    common, others = iter(shared), iter(own)
    while len(ordered) < len(found):
        source = common if len(ordered) % SHARED_EVERY == 0 else others
        fresh = next((one for one in source if one.comparison_id not in ordered), None)
        if fresh is None:  # this order is at its end; the other has the rest
            fresh = next(one for one in found if one.comparison_id not in ordered)
        ordered[fresh.comparison_id] = fresh
    return list(ordered.values())


def _in_turns(found: Sequence[Comparison], annotator: str) -> list[Comparison]:
    """Each pair of methods in turn; within a pair in an order that the name decides."""

    def place(one: Comparison) -> str:
        return content_id("order", annotator, one.comparison_id)

    ranks: dict[tuple[str, str], int] = {}
    placed = []
    for one in sorted(found, key=place):
        rank = ranks[one.methods] = ranks.get(one.methods, -1) + 1
        placed.append(((rank, place(one)), one))
    return [one for _, one in sorted(placed, key=lambda entry: entry[0])]
