"""The trunk: from curated queries to a prompt optimizer fine-tuned on critiqued drafts (VPO, stage one).

Belongs here: drafts, draft_critiques, sft_dataset and sft_checkpoint. Does not belong here: anything that
depends on a video model (target.py).
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from storage.ids import content_id
from storage.scope import Scope, read_narrowed
from storage.tables import DRAFT_CRITIQUES, DRAFTS, QUERIES, SFT_DATASET
from vpo_assets.platform import Platform
from vpo_assets.steps import Made, Row, RowStep, SetStep, joined, own_columns
from vpo_assets.table_assets import row_asset, set_asset
from vpo_assets.training import Training, checkpoint_asset
from vpo_assets.writing import critique_step, few_shot_prompts, few_shot_recipe, verdict_counts


def split_queries(split: str, limit: int | None) -> str:
    """SELECT of the kept queries of one split, at most `limit`, those with the smallest ids."""
    most = f"ORDER BY query_id LIMIT {int(limit)}" if limit else ""
    return f"SELECT query_id, query FROM {QUERIES.qualified} WHERE keep AND split = '{split}' {most}"


def draft_inputs(platform: Platform) -> str:
    """Every SFT query, once."""
    source = split_queries("sft", platform.profile.drafts.limit)
    return f"SELECT content_id([query_id, query]) AS input_id, query_id, query FROM ({source})"


def write_drafts(platform: Platform, rows: Sequence[Row]) -> list[Made]:
    """One few-shot draft a query."""
    return joined(rows, few_shot_prompts(platform, rows), _draft)


def _draft(row: Row, written: Row) -> Row:
    prompt_id = content_id("draft", row["query_id"], written["prompt"])
    return {"prompt_id": prompt_id, "query_id": row["query_id"], **written}


DRAFTS_STEP = RowStep(
    table=DRAFTS,
    inputs=draft_inputs,
    by_query=lambda platform: not platform.profile.drafts.limit,
    recipe=few_shot_recipe,
    work=write_drafts,
    stage="prompts",
    backends=lambda profile: (profile.language_model,),
    batch_size=lambda platform: platform.profile.refresh.text_batch,
)

drafts = row_asset(
    DRAFTS_STEP,
    description="A few-shot language model drafts an optimized prompt for every SFT query.",
    deps=["queries"],
    kinds={"huggingface"},
    uses_model=True,
)

DRAFT_CRITIQUES_STEP = critique_step(DRAFT_CRITIQUES, DRAFTS_STEP)

draft_critiques = row_asset(
    DRAFT_CRITIQUES_STEP,
    description="The judge checks every draft for being harmless, accurate and helpful, and refines the flawed ones.",
    deps=["drafts", "queries"],
    kinds={"python"},
    figures=lambda platform: {"verdicts": verdict_counts(platform, DRAFT_CRITIQUES.qualified)},
)


_SFT_SOURCES = (DRAFTS, DRAFT_CRITIQUES, QUERIES)


def sft_examples(platform: Platform, scope: Scope) -> tuple[pa.Table, dict[str, Any]]:
    """A conversation a query: the request, answered by the draft, or by its refinement where it is flawed."""
    sql = (
        "SELECT c.query_id, c.prompt_id, q.query, c.aligned, coalesce(c.refined, c.prompt) AS answer "
        f"FROM {DRAFT_CRITIQUES.qualified} AS c JOIN {QUERIES.qualified} AS q USING (query_id) "
        f"WHERE c.prompt_id IN (SELECT prompt_id FROM {DRAFTS_STEP.present(platform)}) "
        "AND (c.aligned OR c.refined IS NOT NULL) ORDER BY c.query_id"
    )
    critiques = read_narrowed(platform.lake, sql, _SFT_SOURCES, scope).to_pylist()
    template = platform.template("optimize")
    examples = [
        {
            "query_id": row["query_id"],
            "messages": [
                *template.messages(query=row["query"]),
                {"role": "assistant", "content": row["answer"]},
            ],
            "origin": "draft" if row["aligned"] else "refined",
            "prompt_id": row["prompt_id"],
        }
        for row in critiques
    ]
    return own_columns(SFT_DATASET, examples), {}


def _origins(platform: Platform) -> dict[str, Any]:
    counts = f"SELECT origin, count(*) AS examples FROM {SFT_DATASET.qualified} GROUP BY ALL ORDER BY ALL"
    return {"origins": platform.lake.query(counts)}


SFT_DATASET_STEP = SetStep(
    table=SFT_DATASET,
    recipe=lambda platform: {
        "template": platform.template("optimize").hash,
        "drafts": DRAFTS_STEP.full_recipe(platform).id,
    },
    work=sft_examples,
    reads=(DRAFTS_STEP, DRAFT_CRITIQUES_STEP),
    sources=_SFT_SOURCES,
    by_query=True,
    figures=_origins,
)

sft_dataset = set_asset(
    SFT_DATASET_STEP,
    description="Flawless drafts as they are, flawed ones as the judge refined them: conversations to learn from.",
    deps=["draft_critiques", "queries"],
)

SFT_TRAINING = Training(
    stage="sft",
    target=None,
    data=SFT_DATASET,
    base=lambda platform: platform.base_model,
    base_name=lambda platform: platform.base_model_name,
    settings=lambda platform: platform.profile.sft,
)

sft_checkpoint = checkpoint_asset(
    SFT_TRAINING,
    description="The language model, fine-tuned to rewrite queries as the critiqued drafts do.",
    deps=["sft_dataset"],
)

STEPS = (DRAFTS_STEP, DRAFT_CRITIQUES_STEP)
SET_STEPS = (SFT_DATASET_STEP,)
ASSETS = (drafts, draft_critiques, sft_dataset, sft_checkpoint)
