"""Markdown and terminal tables: laid out well, and text stays text."""

import html
import io
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.report.hostile import TEXTS
from vpo_assets.report.plain_text import one_line
from vpo_assets.report.tables import LONGEST_CELL, escape_markdown, markdown_table, print_tables

ROWS = [
    {"method": "vpo", "score": 3.4142, "n": 11640, "ok": True},
    {"method": "few_shot", "score": math.nan, "n": None, "extra": [1, 2.5]},
]


def test_a_table_shows_all_columns_with_numbers_to_the_right() -> None:
    assert markdown_table(ROWS).splitlines() == [
        "| method | score | n | ok | extra |",
        "| --- | ---: | ---: | --- | --- |",
        "| vpo | 3.41 | 11,640 | yes | – |",
        "| few_shot | – | – | – | 1, 2.50 |",
    ]


def test_columns_and_float_format_can_be_chosen() -> None:
    lines = markdown_table(ROWS, ["n", "score"], "{:.1f}").splitlines()
    assert lines[0] == "| n | score |" and lines[2] == "| 11,640 | 3.4 |"
    assert markdown_table([]) == "*No rows.*"


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_hostile_cells_stay_one_cell_of_text(text: str) -> None:
    table = markdown_table([{"a": text, "b": 1}])
    row = table.split("\n")[2:]
    assert len(row) == 1 and row[0].count("|") == 3
    cell = row[0][2 : -len(" | 1 |")]
    assert not re.search(r"[<>`*\[\]\\~|\"']", cell)
    assert not re.search(r"://|www\.|\w@\w|(?<!&)#", cell)
    assert html.unescape(cell).replace("\u2060", "") == one_line(text, LONGEST_CELL)
    assert len(cell) < 7 * (LONGEST_CELL + 100)


def test_hostile_headings_stay_text() -> None:
    assert "<" not in markdown_table([{"<b>|": 1}]) and "&#124;" in markdown_table([{"<b>|": 1}])


@given(st.text(max_size=80))
def test_escaping_loses_nothing(text: str) -> None:
    assert html.unescape(escape_markdown(text)).replace("\u2060", "") == one_line(text).replace("\u2060", "")


def test_terminal_tables_show_markup_and_control_sequences_as_text() -> None:
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=False)
    print_tables({"Scores": ROWS, "[red]None": []}, console=console)
    print_tables({"Hostile": [{"t": text} for text in TEXTS[9:11]]}, console=console)
    shown = out.getvalue()
    assert "few_shot" in shown and "3.41" in shown and "11,640" in shown
    assert "[red]None: no rows" in shown and "[red]markup[/red]" in shown
    assert "\x1b" not in shown and "\u241b[31mred" in shown
