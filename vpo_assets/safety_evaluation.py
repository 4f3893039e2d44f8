"""How safe every method's prompts are: rated by aspects and levels, and laid side by side.

Belongs here: the step and asset `eval_safety`, its rows of the evaluation, and its table for a terminal. Does not
belong here: what levels mean and how they are counted (ml/safety_levels.py), or the judge's verdicts (evaluation.py).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pyarrow as pa
from dagster import AssetsDefinition
from rich.table import Table as Grid

from ml.safety_levels import ASPECTS, LEVELS, SafetyRow, safety_table
from resources.judge import SafetyJudgement, safety_rater
from storage.recipe import JSON
from storage.tables import EVAL_SAFETY, QUERIES
from vpo_assets.evaluation_rows import evaluation_row
from vpo_assets.platform import Platform
from vpo_assets.report.plain_text import one_line
from vpo_assets.report.tables import folding_grid, with_interval
from vpo_assets.steps import Made, Row, RowStep, joined
from vpo_assets.table_assets import row_asset

SECTION = "safety"
LEVEL, OF_UNSAFE_QUERIES = "level", "level_of_unsafe_queries"


def safety_step(target: str, prompts: RowStep) -> RowStep:
    """Every held-out prompt, rated by itself: what was asked for is no excuse."""
    return RowStep(
        table=EVAL_SAFETY.at(target),
        inputs=lambda _: (
            "SELECT content_id([prompt_id, prompt]) AS input_id, prompt_id, query_id, method, prompt "
            f"FROM {prompts.table.qualified}"
        ),
        recipe=_recipe,
        work=_rate,
        stage="critiques",
        backends=lambda profile: (profile.judge,),
        batch_size=lambda platform: platform.profile.refresh.text_batch,
        reads=(prompts,),
    )


def safety_asset(step: RowStep, target: str) -> AssetsDefinition:
    """The step's asset."""
    return row_asset(
        step,
        description="How safe every method's prompts are: a level of 1 to 4, and the aspects it is for.",
        deps=[f"{target}/eval_prompts"],
        kinds={"python"},
    )


def rated_methods(platform: Platform, target: str, methods: Sequence[str]) -> list[SafetyRow]:
    """The present ratings, method by method, with the aspects that the judge looks at."""
    ratings = platform.lake.query(
        "SELECT s.method, s.query_id, q.safety = 'unsafe' AS unsafe_query, s.level, s.aspects "
        f"FROM {EVAL_SAFETY.at(target).qualified} AS s JOIN {QUERIES.qualified} AS q USING (query_id) "
        "JOIN methods AS m USING (method) ORDER BY m.place, query_id",
        methods=pa.table({"method": list(methods), "place": range(len(methods))}),
    )
    return safety_table(ratings, safety_rater(platform.judge).aspects_looked_at())


def safety_rows(table: Sequence[SafetyRow]) -> list[Row]:
    """The evaluation's rows about safety: mean levels with intervals, shares of levels and of aspects."""
    return [row for of_method in table for row in _rows(of_method)]


def _recipe(platform: Platform) -> dict[str, JSON]:
    return {"safety": dict(safety_rater(platform.judge).safety_identity())}


def _rate(platform: Platform, rows: Sequence[Row]) -> list[Made]:
    ratings = safety_rater(platform.judge).rate_safety([row["prompt"] for row in rows])
    return joined(rows, ratings, _rating_row)


def _rating_row(row: Row, judged: SafetyJudgement) -> Row:
    return {
        "prompt_id": row["prompt_id"],
        "query_id": row["query_id"],
        "method": row["method"],
        "level": judged.rating.level,
        "aspects": list(judged.rating.aspects),
        "reason": judged.rating.reason,
        "prompt_tokens": judged.prompt_tokens,
        "new_tokens": judged.new_tokens,
    }


def _rows(of_method: SafetyRow) -> list[Row]:
    row = partial(evaluation_row, SECTION, of_method.method)
    rows = [row(LEVEL, of_method.level)]
    if of_method.of_unsafe_queries.n:
        rows.append(row(OF_UNSAFE_QUERIES, of_method.of_unsafe_queries))
    if of_method.against_original is not None:
        rows.append(row(LEVEL, of_method.against_original, against="original"))
    shares = {f"level/{level}": share for level, share in of_method.shares.items()}
    shares |= {f"aspect/{aspect}": share for aspect, share in of_method.aspects.items()}
    return [*rows, *(row(name, None, value=share, n=of_method.n) for name, share in shares.items())]


# ---- read back -------------------------------------------------------------------------------------------------------


def safety_summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The part about safety as plain data, a dict a method, in the order of the rows."""
    mine = [row for row in rows if row["section"] == SECTION]
    found: dict[str, dict[str, Any]] = {}
    for row in mine:
        of_method = found.setdefault(
            row["method"], {"method": row["method"], "queries": 0, "shares": {}, "aspects": {}}
        )
        value = {"mean": row["value"], "low": row["low"], "high": row["high"]}
        kind, _, name = row["metric"].partition("/")
        if name:
            of_method["shares" if kind == "level" else "aspects"][name] = row["value"]
        elif row["against"]:
            of_method["against_original"] = value
        else:
            of_method[row["metric"]] = value
            of_method["queries"] = max(of_method["queries"], row["n"] or 0)
    return list(found.values())


def safety_grids(summary: Sequence[dict[str, Any]]) -> list[Grid]:
    """Levels, and the aspects that any method has, as tables for a terminal; none without ratings."""
    if not summary:
        return []
    levels = folding_grid(
        "Safety: mean level, from 1 (safest) to 4, with 95% intervals; % of prompts at each",
        ("method", "level", "of unsafe queries", "over original", *map(str, LEVELS)),
    )
    for one in summary:
        means = [_estimate(one.get(key)) for key in (LEVEL, OF_UNSAFE_QUERIES, "against_original")]
        levels.add_row(one_line(one["method"]), *means, *(f"{one['shares'][str(level)]:.1%}" for level in LEVELS))
    seen = [aspect for aspect in ASPECTS if any(one["aspects"].get(aspect) for one in summary)]
    if not seen:
        return [levels]
    methods = [one["method"] for one in summary]
    aspects = folding_grid("Safety: % of prompts with each aspect that any has", ("aspect", *methods))
    for aspect in seen:
        aspects.add_row(aspect.replace("_", " "), *(f"{one['aspects'].get(aspect, 0.0):.1%}" for one in summary))
    return [levels, aspects]


def _estimate(found: dict[str, float] | None) -> str:
    return "" if found is None else with_interval(found["mean"], found["low"], found["high"], 2)
