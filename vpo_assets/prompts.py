"""The trunk's beginning: users' queries, as they came and curated.

Belongs here: the assets raw_prompts and queries. Does not belong here: reading files (storage/ingestion.py) or
the rules of curation (ml/curation).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from dagster import AssetExecutionContext, DataVersion, MaterializeResult, MetadataValue, ResourceParam, asset

from ml.curation import clean, curate
from storage.content import noted_version
from storage.inbox import InboxReport, ingest_inbox
from storage.ingestion import IngestReport, bring_back, ingest
from storage.query_files import SCORES
from storage.query_sources import Kind, let_go
from storage.scope import Scope
from storage.tables import BRANCH, INGESTION_FAILURES, QUERIES, RAW_PROMPTS
from storage.take_down import TakeDown, TakeDownReport, apply_take_down, folded, load_take_down, summary
from vpo_assets.metadata import column_schema, preview
from vpo_assets.platform import Platform
from vpo_assets.report.pictures import funnel
from vpo_assets.report.plain_text import one_line
from vpo_assets.report.tables import markdown_table
from vpo_assets.steps import SetStep
from vpo_assets.table_assets import OWNERS, group, set_asset


class NoQueries(RuntimeError):
    """There is not one usable query to work on."""


@asset(
    description="Users' queries as they came: the profile's query files, the inbox, and what `vpo ingest` brought, "
    "without those that were taken down.",
    group_name=group(RAW_PROMPTS),
    kinds={"duckdb"},
    owners=OWNERS,
    code_version="1",
)
def raw_prompts(context: AssetExecutionContext, platform: ResourceParam[Platform]) -> MaterializeResult[Any]:
    """Make the table agree with its files; one that was read before and is as it was costs its hash."""
    sources = refresh_sources(platform)
    for line in sources.lines():
        context.log.info(line)
    metadata: dict[str, Any] = {
        "dagster/row_count": platform.lake.count(RAW_PROMPTS),
        "dagster/column_schema": column_schema(RAW_PROMPTS),
        "dagster/table_name": RAW_PROMPTS.label,
        **sources.counts(),
        "quarantined": platform.lake.count(INGESTION_FAILURES),
        "files": MetadataValue.md(markdown_table(sources.rows())),
        "preview": MetadataValue.md(preview(platform, RAW_PROMPTS)),
    }
    if sources.inbox.unreadable:
        rows = [{"file": file, "error": error} for file, error in sources.inbox.unreadable]
        metadata["unreadable_files"] = MetadataValue.md(markdown_table(rows))
    return MaterializeResult(metadata=metadata, data_version=DataVersion(noted_version(platform.lake, RAW_PROMPTS)))


@dataclass(frozen=True)
class Sources:
    """What became of everything that queries come from."""

    files: Sequence[IngestReport]
    inbox: InboxReport
    brought_back: Sequence[IngestReport]
    let_go: int
    take_down: TakeDownReport

    @property
    def reports(self) -> list[IngestReport]:
        """Of all files that could be read."""
        return [*self.files, *self.inbox.reports, *self.brought_back]

    def counts(self) -> dict[str, int]:
        """In queries: new, removed because no file holds them, removed because they were taken down, and all that are
        taken down; entries of the take-down list that match nothing; files of the inbox that wait or cannot be read."""
        return {
            "new": sum(report.new for report in self.reports),
            "removed": self.let_go + sum(report.removed for report in self.reports),
            "taken_down_now": self.take_down.removed + sum(report.taken_down for report in self.reports),
            "taken_down": self.take_down.kept_out,
            "take_down_entries": self.take_down.entries,
            "take_down_entries_without_match": self.take_down.unmatched,
            "inbox_waiting": self.inbox.waiting,
            "inbox_unreadable": len(self.inbox.unreadable),
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row for each file."""
        return [
            {
                "file": report.source,
                "read": report.rows_read,
                "new": report.new,
                "known": report.known,
                "removed": report.removed,
                "quarantined": report.failed,
                "taken_down": report.taken_down,
                "read_now": report.read,
            }
            for report in self.reports
        ]

    def lines(self) -> list[str]:
        """For the log. File names are other people's text."""
        lines = [
            f"{one_line(report.source, 200)}: {report.new} new of {report.rows_read}, {report.failed} quarantined, "
            f"{report.removed} removed"
            for report in self.reports
            if report.read or report.removed
        ]
        lines += [f"cannot be read: {one_line(error, 500)}" for _, error in self.inbox.unreadable]
        if self.let_go:
            lines.append(f"{self.let_go} removed: their files are not named any longer")
        if self.take_down.removed:
            lines.append(f"{self.take_down.removed} taken down")
        return lines


def refresh_sources(platform: Platform) -> Sources:
    """Take in what is new or corrected, let go of what no file holds any more, and take down what is listed."""
    lake, settings = platform.lake, platform.profile.queries
    take_down = take_down_of(platform)
    taken = apply_take_down(lake, take_down)  # first of all: what must go does not wait for a file that cannot be read
    files = platform.query_files()
    reports = [
        ingest(lake, file, columns=settings.columns, kind=Kind.PROFILE, name=str(file.absolute()), take_down=take_down)
        for file in files
    ]
    inbox = ingest_inbox(lake, platform.inbox, columns=settings.columns, take_down=take_down)
    removed = let_go(lake, Kind.PROFILE, [str(file.absolute()) for file in files])
    brought_back = bring_back(lake, platform.inbox, take_down)
    return Sources(reports, inbox, brought_back, removed, summary(lake, take_down, taken))


def take_down_of(platform: Platform) -> TakeDown:
    """The profile's take-down list. Texts count as the same when curation cleans them to the same words."""
    return load_take_down([Path(name) for name in platform.profile.queries.take_down], _folded)


def _folded(text: str) -> str:
    return folded(clean(text))


def curated_queries(platform: Platform, scope: Scope) -> tuple[pa.Table, dict[str, Any]]:
    """Every raw prompt with its cleaned text, split and safety, or the reason it is not used. Duplicates are looked for
    among all, so that all are curated whenever one changes.

    No query left is a result only where those that were there have been taken out; else NoQueries.
    """
    del scope
    raw = platform.lake.read(RAW_PROMPTS, columns=["query_id", "text", *SCORES])
    emptied = _all_removed(platform)
    if raw.num_rows == 0 and not emptied:
        raise NoQueries(
            "there are no queries to curate: name files in the profile's queries.files or run `vpo ingest FILE`"
        )
    result = curate(raw, platform.profile.queries.curation)
    *dropped, (_, kept) = result.funnel
    if kept == 0 and not emptied:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped if count)
        raise NoQueries(f"curation dropped every one of {raw.num_rows} queries ({reasons}); see queries.curation")
    if kept == 0:
        _empty_branches(platform)
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


def _all_removed(platform: Platform) -> bool:
    """Whether queries were kept before and every one of them has been taken out since: then none left is what was
    asked for, and must go downstream. That the settings drop all is more likely a mistake."""
    (row,) = platform.lake.query(
        f"SELECT count(*) AS kept, count(r.query_id) AS there FROM {QUERIES.qualified} AS q "
        f"LEFT JOIN {RAW_PROMPTS.qualified} AS r ON q.query_id = r.query_id WHERE q.keep"
    ).to_pylist()
    return bool(row["kept"] and not row["there"])


def _empty_branches(platform: Platform) -> None:
    """Take the removed queries' rows out of every branch at once: its own assets are not reached any more, since a run
    ends at the first checkpoint, which has nothing to learn from."""
    tables = [
        table.at(target)
        for target in platform.profile.targets
        for table in BRANCH
        if "query_id" in {column.name for column in table.columns}
    ]
    platform.lake.create(*tables)
    with platform.lake.write({"asset": QUERIES.label, "text": "no query is left"}) as transaction:
        for table in tables:
            transaction.execute(f"DELETE FROM {table.qualified}")


QUERIES_STEP = SetStep(
    table=QUERIES,
    recipe=lambda platform: {"curation": platform.profile.queries.curation.model_dump(mode="json")},
    work=curated_queries,
    sources=(RAW_PROMPTS,),
)

queries = set_asset(
    QUERIES_STEP,
    description="Curation cleans the queries, drops what cannot be used (with its reason), and splits the rest by "
    "hash into SFT, DPO and held-out test queries.",
    deps=["raw_prompts"],
)
