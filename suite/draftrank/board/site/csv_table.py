"""Every row of every board as tables of comma-separated values: one of this engine, one of servers."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict

from draftrank.board.rows import Board, BoardRow
from draftrank.board.serving import ServedFigures, ServingBoard

_OF_BOARD = (
    "target", "suite", "backend", "dtype", "mode", "machine_class", "device", "draftrank_version",
)  # fmt: skip
_OF_ROW = (
    "draft", "title", "speedup", "acceptance_length", "acceptance_rate", "draft_cost", "k", "tokens_per_second",
    "predicted_speedup", "engine_efficiency", "parameters", "bytes_on_disk", "peak_memory_bytes", "build_s",
    "trained", "lossy", "ranked", "reason", "measured_at", "session", "recipe_sha256", "weights_sha256",
)  # fmt: skip
_SERVED = (
    "board", "target", "server", "engine", "engine_version", "dtype", "device", "machine_class", "suite", "rate",
    "draftrank_version", "draft", "title", "proposer", "method", "trained", "arm", "k", "concurrency", "rank_best",
    "rank_worst", "speedup", "ci_low", "ci_high", "throughput", "per_user", "tpot_s", "tpot_ci_low", "tpot_ci_high",
    "tpot_p99_s", "ttft_s", "ttft_ci_low", "ttft_ci_high", "ttft_p99_s", "acceptance_length", "acceptance_rate",
    "memory_bytes", "energy_per_token_j", "client_cpu", "server_cpu", "rounds", "output", "ranked", "reason",
    "switch_off_at", "switch_off_words", "measured_at", "session", "recipe_sha256", "weights_sha256",
)  # fmt: skip
_OF_DRAFT = (
    "draft", "title", "proposer", "method", "trained", "measured_at", "session", "recipe_sha256", "weights_sha256",
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


def serving_table(boards: Sequence[ServingBoard]) -> str:
    """A head line, then one line per server (plain, or with a draft at one k) and concurrency; values as in `csv_table`.

    Ranks stand with the k that the board shows at that concurrency. Plain servers have no draft.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, _SERVED, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()

    def write(board: ServingBoard, found: ServedFigures, **others: object) -> None:
        best, worst = found.rank or (None, None)
        ends: dict[str, object] = {"rank_best": best, "rank_worst": worst}
        for name in ("ci", "tpot_ci", "ttft_ci"):
            low, high = getattr(found, name) or (None, None)
            ends |= {f"{name}_low": low, f"{name}_high": high}
        line = {"board": board.key.id} | asdict(board.key) | asdict(found) | ends | others
        writer.writerow({name: _cell(value) for name, value in line.items()})

    for board in boards:
        for session in board.sessions:
            for found in session.plain.values():
                write(board, found, session=session.record.id, measured_at=session.measured_at)
        for row in board.rows:
            of_draft = {name: getattr(row, name) for name in _OF_DRAFT}
            of_draft |= {"switch_off_at": row.switch_off.at, "switch_off_words": row.switch_off.words}
            for figures in row.arms:
                for found in figures:
                    shown = row.best[found.concurrency]
                    write(board, shown if shown.arm == found.arm else found, **of_draft)
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
