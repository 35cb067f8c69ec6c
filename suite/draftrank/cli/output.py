"""Output of the command line: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from draftrank.errors import DraftrankError, InvalidInputError, Problem
from draftrank.progress import Progress as AnyProgress
from draftrank.progress import Stage


def _console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Titles, paths and messages are text, never markup: a bracket in them stays a bracket."""
    return Console(
        stderr=stderr, width=width, highlight=False, soft_wrap=width is None, markup=False, emoji=False
    )


out = _console()
err = _console(stderr=True)


def print_json(value: Any) -> None:
    """Prints one compact JSON object on a line of its own, in ASCII, which every pipe carries."""
    sys.stdout.write(json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n")


def print_facts(facts: Mapping[str, str]) -> None:
    """Prints named values, one to a line."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, Text(value))
    print_table(table)


def new_table(*names: str, left: Collection[str] = ("task",)) -> Table:
    """A table with these columns, aligned to the right but for those in `left`."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, justify="left" if name in left else "right")
    return table


def print_table(table: Table) -> None:
    """Prints a table without lines, as wide as its content: a narrow terminal breaks lines, no figure is cut off. rich
    itself takes many times as long for the same text."""
    columns = table.columns
    rows = [[str(cell) for cell in row] for row in zip(*(column.cells for column in columns), strict=True)]
    styles = [str(row.style or "") for row in table.rows]
    if table.show_header:
        rows.insert(0, [str(column.header) for column in columns])
        styles.insert(0, str(table.header_style))
    widths = [
        max(cell_len(line) for cell in cells for line in cell.split("\n"))
        for cells in zip(*rows, strict=True)
    ]
    text = Text()
    for row, style in zip(rows, styles, strict=True):
        for line in zip_longest(*(cell.split("\n") for cell in row), fillvalue=""):
            for column, width, part in zip(columns, widths, line, strict=True):
                room = " " * (width - cell_len(part))
                padded = room + part if column.justify == "right" else part + room
                text.append(padded, style or column.style).append("\n" if column is columns[-1] else "  ")
    out.print(text, end="")


def report_error(error: DraftrankError) -> None:
    """Prints every problem of an expected failure."""
    if isinstance(error, InvalidInputError):
        print_problems(error.problems)
    else:
        err.print(Text.assemble(("error: ", "bold red"), str(error)))


def print_problems(problems: tuple[Problem, ...]) -> None:
    """Prints problems, one per line."""
    for problem in problems:
        err.print(Text.assemble(("error: ", "bold red"), str(problem)))


def print_head(target: str, facts: Iterable[str], archived: str | None = None) -> None:
    """Prints what a board or a comparison is about; `archived` is the version that measured an archived one."""
    out.print(Text.assemble(("\n" + target, "bold"), *(f" · {fact}" for fact in facts)))
    if archived:
        told = f"archived: measured by draftrank {archived}; minor versions are not comparable"
        out.print(Text(told, "yellow"))


class _Stage(Stage):
    def __init__(self, bars: Progress, task: TaskID, label: str, plain: bool) -> None:
        self._bars, self._task, self._label, self._plain = bars, task, label, plain
        self._told = 0.0

    def advance(self, amount: float = 1.0, note: str | None = None) -> None:
        self._bars.update(self._task, advance=amount)
        if note is not None:
            self._bars.update(self._task, note=note)
        if self._plain:
            self._tell(note)

    def _tell(self, note: str | None) -> None:
        """Without a terminal, a line at every tenth of the way says how far it is."""
        state = next(task for task in self._bars.tasks if task.id == self._task)
        if not state.total:
            return
        share = state.completed / state.total
        if share < 1.0 and share - self._told < 0.1:
            return
        self._told = share
        left = f", {state.time_remaining:.0f} s left" if state.time_remaining else ""
        err.print(
            Text(
                f"{self._label}: {share:.0%} after {state.elapsed or 0:.0f} s{left}"
                + (f" ({note})" if note else "")
            )
        )


class ConsoleProgress(AnyProgress):
    """Draws live bars on a terminal, as occasional lines elsewhere."""

    def __init__(self) -> None:
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )

    def __enter__(self) -> ConsoleProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    @contextmanager
    def stage(self, label: str, total: float | None = None) -> Iterator[Stage]:
        task = self._bars.add_task(label, total=total, note="")
        if not err.is_terminal:
            err.print(Text(label))
        try:
            yield _Stage(self._bars, task, label, plain=not err.is_terminal)
        finally:
            self._bars.remove_task(task)

    def message(self, text: str) -> None:
        err.print(Text(text))
