"""What people see of a table in Dagster: counts, columns, a preview, pictures.

Belongs here: turning reports and rows into metadata values. Does not belong here: drawing (report).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from dagster import MetadataValue, TableColumn, TableColumnConstraints, TableSchema

from storage.plan import Plan
from storage.refresh import Report
from storage.tables import FAILURES, Table, quoted
from vpo_assets.plan_words import in_one_line, reasons
from vpo_assets.platform import Platform
from vpo_assets.report.pictures import as_markdown_image
from vpo_assets.report.plain_text import one_line
from vpo_assets.report.tables import escape_markdown, markdown_table

PREVIEW_ROWS = 8
PREVIEW_CHARACTERS = 160
FAILURES_NAMED = 20


def column_schema(table: Table) -> TableSchema:
    """The table's columns as Dagster knows them."""
    return TableSchema(
        columns=[
            TableColumn(
                name=column.name,
                type=str(column.type),
                description=column.description,
                constraints=TableColumnConstraints(nullable=column.nullable, unique=column.name == table.key),
            )
            for column in table.all_columns
        ]
    )


def table_metadata(platform: Platform, table: Table, report: Report, run_id: str) -> dict[str, Any]:
    """Counts of a refresh, where the table is, what its language model used up in this run, and its first rows."""
    return {
        "dagster/row_count": report.total,
        "dagster/column_schema": column_schema(table),
        "dagster/table_name": table.label,
        "dagster/storage_kind": "ducklake",
        "new": report.new,
        "redone": report.stale,
        "reused": report.reused,
        "removed": report.removed,
        "failed": report.failed,
        "given_up": report.given_up,
        "seconds": round(report.seconds, 2),
        "rows_per_second": round(report.rows_per_second or 0.0, 2),
        "snapshot": report.snapshot,
        **usage(platform, table, run_id),
        "preview": MetadataValue.md(preview(platform, table)),
    }


def plan_metadata(plan: Plan) -> dict[str, Any]:
    """What a refresh was going to do when it began, and why."""
    why = reasons(plan)
    return {
        "recipe": plan.recipe.id,
        "planned": in_one_line(plan),
        "why": MetadataValue.md("\n".join(f"- {escape_markdown(reason)}" for reason in why) or "nothing to do"),
    }


def failed_rows(platform: Platform, table: Table, recipe: str) -> list[str]:
    """A line for each row in quarantine, the last to fail first: its input id and the first line of the reason."""
    rows = platform.lake.query(
        f"SELECT input_id, error, attempts, count(*) OVER () AS n FROM {FAILURES.qualified} "
        f"WHERE table_name = ? AND recipe = ? ORDER BY last_at DESC, input_id LIMIT {FAILURES_NAMED}",
        [table.label, recipe],
    ).to_pylist()
    lines = [
        f"{table.label}: input {one_line(row['input_id'], 80)} failed (attempt {row['attempts']}): "
        f"{one_line((row['error'].splitlines() or [''])[0], 300)}"
        for row in rows
    ]
    more = rows[0]["n"] - len(rows) if rows else 0
    return lines + ([f"{table.label}: and {more:,} more are in quarantine (table failures)"] if more else [])


def usage(platform: Platform, table: Table, run_id: str) -> dict[str, int]:
    """Tokens that a run's rows cost, where the table has them."""
    counted = [column.name for column in table.columns if column.name in ("prompt_tokens", "new_tokens")]
    if not counted:
        return {}
    sums = ", ".join(f"coalesce(sum({quoted(name)}), 0)::BIGINT AS {quoted(name)}" for name in counted)
    (row,) = platform.lake.query(f"SELECT {sums} FROM {table.qualified} WHERE run_id = ?", [run_id]).to_pylist()
    return {name: int(row[name]) for name in counted}


def preview(platform: Platform, table: Table) -> str:
    """The first rows of a table as Markdown, long texts cut."""
    names = ", ".join(quoted(column.name) for column in table.columns)
    rows = platform.lake.query(
        f"SELECT {names} FROM {table.qualified} ORDER BY {quoted(table.key)} LIMIT {PREVIEW_ROWS}"
    )
    return markdown_table([{name: _short(value) for name, value in row.items()} for row in rows.to_pylist()])


def picture(png: bytes) -> MetadataValue[Any]:
    """A picture that Dagster shows inline."""
    return MetadataValue.md(as_markdown_image(png))


def figures_metadata(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a step: pictures from bytes, tables from lists of rows, anything else as it is."""
    return {name: _figure(value) for name, value in figures.items()}


def _figure(value: Any) -> Any:
    if isinstance(value, bytes):
        return picture(value)
    if isinstance(value, pa.Table):
        return MetadataValue.md(markdown_table(value.to_pylist()))
    if isinstance(value, Sequence) and not isinstance(value, str) and value and isinstance(value[0], Mapping):
        return MetadataValue.md(markdown_table(value))
    return value


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > PREVIEW_CHARACTERS:
        return value[:PREVIEW_CHARACTERS] + "…"
    if isinstance(value, list | dict):
        return _short(str(value))
    return value
