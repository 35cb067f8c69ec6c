"""Tables of the terminal: as rich writes them where there is room."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from rich.text import Text

from draftrank.cli import output
from draftrank.cli.output import print_facts, print_table

lines = st.text(st.sampled_from("abc 1.×–漢字"), max_size=5).map(str.strip)
# rich takes spaces at the end of a line away
cells = st.lists(lines, min_size=1, max_size=3).map("\n".join).map(str.strip).filter(bool)
tables = st.integers(1, 4).flatmap(
    lambda columns: st.lists(st.lists(cells, min_size=columns, max_size=columns), min_size=1, max_size=5)
)


def console(width=None, *, styled=False):
    """One that writes to memory."""
    return Console(
        file=io.StringIO(),
        width=width,
        soft_wrap=width is None,
        force_terminal=styled,
        color_system="standard" if styled else None,
        highlight=False,
        markup=False,
        emoji=False,
    )


@pytest.fixture(scope="module", autouse=True)
def _kept():
    before = output.out
    yield
    output.out = before


def printed(table, *, styled=False):
    output.out = console(styled=styled)
    print_table(table)
    return output.out.file.getvalue()


@given(tables, st.booleans())
def test_a_table_is_as_wide_as_its_content(rows, headed):
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=headed)
    for place in range(len(rows[0])):
        table.add_column(f"column {place}", justify="right" if place % 2 else "left")
    for row in rows:
        table.add_row(*row)
    wide = console(10_000)
    wide.print(table, crop=False)
    assert printed(table) == wide.file.getvalue()


def test_headers_and_rows_keep_their_styles():
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name")
    table.add_column("speed", justify="right")
    table.add_row("plain", "1")
    table.add_row("not ranked", "2", style="dim")
    bold, dim, end = "\x1b[1m", "\x1b[2m", "\x1b[0m"
    assert printed(table, styled=True).splitlines() == [
        f"{bold}name      {end}  {bold}speed{end}",
        "plain           1",
        f"{dim}not ranked{end}  {dim}    2{end}",
    ]


def test_a_narrow_terminal_cuts_no_fact_off():
    output.out = Console(file=io.StringIO(), width=20, soft_wrap=True)
    print_facts({"name": "a sentence that is longer than the terminal is wide", "second": "[not markup]"})
    assert output.out.file.getvalue().splitlines() == [
        "name    a sentence that is longer than the terminal is wide",
        "second  [not markup]                                       ",
    ]


def test_a_cell_may_be_rich_text():
    table = Table(box=None, pad_edge=False)
    table.add_column("a")
    table.add_row(Text("styled", "red"))
    assert printed(table).splitlines() == ["a     ", "styled"]
