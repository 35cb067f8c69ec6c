"""Serving boards as terminal tables."""

from __future__ import annotations

from rich.text import Text

from draftrank.board.earlier import EARLIER
from draftrank.board.formats import UNKNOWN, day, decimal, milliseconds, rank, span, times
from draftrank.board.serving import ServedFigures, ServedRow, ServingBoard
from draftrank.cli.output import new_table, out, print_head, print_table

_LEGEND = (
    "Throughput over the plain server's in the same blocks, with its 95 % interval, by requests in flight: + surely faster, "
    "- surely slower, ~ not told apart. Accept, TPOT and TTFT are those with the fewest requests in flight."
)
_LEGEND_OF_K = " Of several k each column shows the one with the highest speedup; those joined by “or” are not told apart."
_SIGNS = {"faster": "+", "slower": "-", "can't tell": "~"}


def print_serving_board(board: ServingBoard) -> None:
    """Prints one serving board: the plain server, a column for each concurrency, and why drafts are not ranked."""
    key, newest = board.key, board.newest
    facts = (key.engine_and_dtype, key.server, key.suite, key.machine_class, day(newest.measured_at))
    print_head(key.target, facts, key.draftrank_version if key.archived else None)
    plain = ", ".join(
        f"{decimal(cell.throughput, 1)} at {at}" for at, cell in newest.plain.items() if cell.throughput
    )
    load = f" · {key.rate:g} requests/s" if key.rate is not None else ""
    out.print(f"plain server tok/s: {plain or 'unknown'} · {newest.record.rounds} rounds{load}")
    names = ("draft", *map(str, board.concurrencies), "switch-off", "k", "accept", "TPOT", "TTFT")
    table = new_table(*names, left=("draft", "switch-off"))
    for row in board.rows:
        table.add_row(*_cells(board, row), style="" if row.ranked else "dim")
    print_table(table)
    for row in board.several_k:
        best = ", ".join(f"{row.best_k_words(at)} at {at}" for at in row.best)
        out.print(f"best k of {row.draft}: {best} in flight")
    for row in board.rows:
        for reason in row.reasons:
            out.print(Text.assemble(("not ranked: ", "yellow"), f"{row.draft}: {reason}"))
    earlier = [row.draft for row in board.rows if row.earlier_recipe]
    if earlier:
        out.print(Text.assemble(("remark: ", "cyan"), f"{', '.join(earlier)}: {EARLIER}"))
    for warning in newest.record.warnings:
        out.print(Text(warning, "yellow"))
    out.print(Text(_LEGEND + (_LEGEND_OF_K if board.several_k else ""), "dim"))


def _cells(board: ServingBoard, row: ServedRow) -> list[str]:
    first = next(iter(row.best.values()))
    return [
        row.draft,
        *(_speedup(row.best.get(at)) for at in board.concurrencies),
        row.switch_off.words,
        str(first.k),
        decimal(first.acceptance_length),
        milliseconds(first.tpot_s),
        milliseconds(first.ttft_s),
    ]


def _speedup(found: ServedFigures | None) -> str:
    if found is None or not found.ranked:
        return UNKNOWN
    return f"{_SIGNS[found.answer]}{times(found.speedup)} {span(found.ci)} #{rank(found.rank)}"
