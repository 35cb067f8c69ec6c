"""Every row of every board as one table of comma-separated values."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from draftrank.board.rows import Board, BoardRow

_OF_BOARD = (
    "target", "suite", "backend", "dtype", "mode", "machine_class", "device", "draftrank_version",
)  # fmt: skip
_OF_ROW = (
    "draft", "title", "speedup", "acceptance_length", "acceptance_rate", "draft_cost", "k", "tokens_per_second",
    "predicted_speedup", "engine_efficiency", "parameters", "bytes_on_disk", "peak_memory_bytes", "build_s",
    "trained", "lossy", "ranked", "reason", "measured_at", "session", "recipe_sha256", "weights_sha256",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_table(boards: Sequence[Board]) -> str:
    """A head line, then one line per row; unknown figures are empty, times and sizes in seconds and bytes."""
    tasks = sorted({task for board in boards for task in board.tasks})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ("board", *_OF_BOARD, "rank_best", "rank_worst", "ci_low", "ci_high", "techniques", "output")
    writer.writerow([*head, *_OF_ROW, *(f"speedup_{task}" for task in tasks)])
    for board in boards:
        of_board = [board.key.id, *(getattr(board.key, name) for name in _OF_BOARD)]
        for row in board.rows:
            writer.writerow([_cell(value) for value in (*of_board, *_of_row(row), *_of_tasks(row, tasks))])
    return text.getvalue()


def _of_row(row: BoardRow) -> list[object]:
    rank, ends = row.rank or (None, None), row.ci or (None, None)
    plain = [getattr(row, name) for name in _OF_ROW]
    return [*rank, *ends, " + ".join(row.techniques), row.fidelity.status, *plain]


def _of_tasks(row: BoardRow, tasks: Sequence[str]) -> list[object]:
    return [row.per_task[task].speedup if task in row.per_task else None for task in tasks]


def _cell(value: object) -> object:
    """A value as spreadsheets should take it: a text that they would compute is marked as text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return "" if value is None else value
