"""The trunk's beginning: users' queries, as they came and curated.

Belongs here: the assets raw_prompts and queries. Does not belong here: reading files (storage/ingestion.py) or
the rules of curation (ml/curation).
"""

from typing import Any

import pyarrow as pa
from dagster import AssetExecutionContext, DataVersion, MaterializeResult, MetadataValue, ResourceParam, asset

from ml.curation import curate
from storage.content import data_version
from storage.ingestion import ingest
from storage.tables import INGESTION_FAILURES, QUERIES, RAW_PROMPTS
from vpo_assets.metadata import column_schema, preview
from vpo_assets.platform import Platform
from vpo_assets.report.pictures import funnel
from vpo_assets.report.tables import markdown_table
from vpo_assets.steps import SetStep
from vpo_assets.table_assets import OWNERS, group, set_asset

NSFW_SCORES = ("toxicity", "obscene", "identity_attack", "insult", "threat", "sexual_explicit")


class NoQueries(RuntimeError):
    """There is not one usable query to work on."""


@asset(
    description="Users' queries as they came: the profile's query files, and whatever `vpo ingest` brought.",
    group_name=group(RAW_PROMPTS),
    kinds={"duckdb"},
    owners=OWNERS,
    code_version="1",
)
def raw_prompts(context: AssetExecutionContext, platform: ResourceParam[Platform]) -> MaterializeResult[Any]:
    """Ingest every file of the profile once; a file that was read before adds nothing."""
    reports = [ingest(platform.lake, file) for file in platform.query_files()]
    for report in reports:
        context.log.info(f"{report.source}: {report.new} new of {report.rows_read}, {report.failed} quarantined")
    rows = [
        {"file": r.source, "read": r.rows_read, "new": r.new, "known": r.known, "quarantined": r.failed}
        for r in reports
    ]
    metadata: dict[str, Any] = {
        "dagster/row_count": platform.lake.count(RAW_PROMPTS),
        "dagster/column_schema": column_schema(RAW_PROMPTS),
        "dagster/table_name": RAW_PROMPTS.label,
        "new": sum(report.new for report in reports),
        "quarantined": platform.lake.count(INGESTION_FAILURES),
        "files": MetadataValue.md(markdown_table(rows)),
        "preview": MetadataValue.md(preview(platform, RAW_PROMPTS)),
    }
    return MaterializeResult(metadata=metadata, data_version=DataVersion(data_version(platform.lake, RAW_PROMPTS)))


def curated_queries(platform: Platform) -> tuple[pa.Table, dict[str, Any]]:
    """Every raw prompt with its cleaned text, split and safety, or the reason it is not used."""
    raw = platform.lake.read(RAW_PROMPTS, columns=["query_id", "text", *NSFW_SCORES])
    if raw.num_rows == 0:
        raise NoQueries(
            "there are no queries to curate: name files in the profile's queries.files or run `vpo ingest FILE`"
        )
    result = curate(raw, platform.profile.queries.curation)
    *dropped, (_, kept) = result.funnel
    if kept == 0:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped if count)
        raise NoQueries(f"curation dropped every one of {raw.num_rows} queries ({reasons}); see queries.curation")
    left = raw.num_rows
    steps = [("read", left)]
    for reason, count in dropped:
        if count:
            left -= count
            steps.append((f"without {reason}", left))
    splits = platform.lake.query(
        "SELECT split, safety, count(*) AS queries FROM rows WHERE keep GROUP BY ALL ORDER BY ALL",
        rows=result.rows,
    )
    figures: dict[str, Any] = {
        "funnel": funnel(steps, "Queries left after each rule"),
        "dropped": [{"reason": reason, "queries": count} for reason, count in dropped],
        "splits": splits,
        "kept": kept,
    }
    if result.self_bleu is not None:
        figures["self_bleu"] = round(result.self_bleu, 4)
    return result.rows, figures


QUERIES_STEP = SetStep(
    table=QUERIES,
    recipe=lambda platform: {"curation": platform.profile.queries.curation.model_dump(mode="json")},
    work=curated_queries,
)

queries = set_asset(
    QUERIES_STEP,
    description="Curation cleans the queries, drops what cannot be used (with its reason), and splits the rest by "
    "hash into SFT, DPO and held-out test queries.",
    deps=["raw_prompts"],
)
