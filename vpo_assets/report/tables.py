"""Rows as tables: Markdown for Dagster's metadata, and tables for the terminal.

Belongs here: laying out rows of plain values whose text nobody vouches for. Does not belong here: choosing
the rows, and the tables of the HTML report (page.py).
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vpo_assets.report.plain_text import one_line

Rows = Sequence[Mapping[str, object]]

LONGEST_CELL = 400
_NOTHING = "–"

# Every character that can begin anything but text in Markdown or HTML. Underscores within a word cannot.
_MARKUP = re.compile(r"[&<>\"'|\\`*\[\]{}#!~$]|(?<![^\W_])_|_(?![^\W_])")

# Renderers turn bare addresses into links after they have decoded entities, so an invisible joiner (U+2060)
# must part them.
_ADDRESS = re.compile(r"(?<=:)(?=//)|(?<=\bwww)(?=\.)|(?<=@)(?=\S)|(?<=\bmailto:)|(?<=\bxmpp:)", re.IGNORECASE)
_JOINER = "\u2060"


def escape_markdown(text: object, longest: int | None = LONGEST_CELL) -> str:
    """One line of Markdown that shows just `text`: no formatting, link, image, HTML or cell break."""
    parted = _ADDRESS.sub(_JOINER, one_line(text, longest))
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", parted)


def markdown_table(rows: Rows, columns: Sequence[str] | None = None, floats: str = "{:.2f}") -> str:
    """A GitHub-flavoured Markdown table. `columns`: which to show and in which order; without it all that
    occur, in order of occurrence. Numbers stand to the right; missing values and NaN are a dash.
    """
    names = _columns(rows, columns)
    if not names:
        return "*No rows.*"
    rules = ["---:" if _numeric(rows, name) else "---" for name in names]
    lines = [[escape_markdown(name) for name in names], rules]
    lines += [[escape_markdown(_shown(row.get(name), floats)) for name in names] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def console_table(rows: Rows, title: str = "", columns: Sequence[str] | None = None, floats: str = "{:.2f}") -> Table:
    """The same table for a terminal. Control sequences and rich's own markup are shown as text."""
    names = _columns(rows, columns)
    table = Table(title=Text(one_line(title), style="bold") if title else None, title_justify="left")
    for name in names:
        if _numeric(rows, name):
            table.add_column(Text(one_line(name)), justify="right", no_wrap=True)
        else:
            table.add_column(Text(one_line(name)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(one_line(_shown(row.get(name), floats), LONGEST_CELL)) for name in names))
    return table


def folding_grid(title: str, columns: Sequence[str], left: Collection[str] = ()) -> Table:
    """An empty table for the terminal whose names and values fold where it is narrow, so that nothing is cut. The first
    column and those in `left` stand to the left, the others to the right."""
    grid = Table(title=one_line(title), title_justify="left")
    for index, name in enumerate(columns):
        justify: Literal["left", "right"] = "left" if index == 0 or name in left else "right"
        grid.add_column(one_line(name), justify=justify, overflow="fold", min_width=4)
    return grid


def with_interval(value: float, low: float, high: float, digits: int = 3) -> str:
    """`1.250 [1.100, 1.400]`."""
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def print_tables(tables: Mapping[str, Rows], *, floats: str = "{:.2f}", console: Console | None = None) -> None:
    """Print each table under its title; a table without rows is one line that says so."""
    out = console or Console()
    for title, rows in tables.items():
        if rows:
            out.print(console_table(rows, title, floats=floats))
        else:
            out.print(Text(f"{one_line(title)}: no rows"))
        out.print()


def _columns(rows: Rows, columns: Sequence[str] | None) -> list[str]:
    if columns is not None:
        return list(columns)
    return list(dict.fromkeys(name for row in rows for name in row))


def _numeric(rows: Rows, name: str) -> bool:
    """Numbers only, with gaps allowed. Yes and no are no numbers."""
    values = [value for row in rows if (value := row.get(name)) is not None]
    return bool(values) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _shown(value: object, floats: str) -> str:
    match value:
        case None:
            return _NOTHING
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return _NOTHING if math.isnan(value) else floats.format(value)
        case datetime():
            return value.isoformat(sep=" ", timespec="seconds")
        case list() | tuple():
            return ", ".join(_shown(item, floats) for item in value)
        case _:
            return str(value)
