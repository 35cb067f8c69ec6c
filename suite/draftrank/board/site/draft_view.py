"""What a draft's page shows of one board, beside the row itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from draftrank.board.ranking import contender_of
from draftrank.board.rows import Board, BoardRow, LengthCell, TaskCell
from draftrank.board.site import charts
from draftrank.measure.cost.model import StepTime
from draftrank.measure.statistics.ranking_evidence import ratio_of

BARS_WIDTH = 320.0
"""Units across a bar chart."""
_MAX_OTHERS = 8


@dataclass(frozen=True, slots=True)
class Against:
    """The draft set against another one of its board."""

    other: BoardRow
    ratio: float
    """Its speed as a multiple of the other's."""
    ci: tuple[float, float]
    """95 % interval."""
    probability: float
    """That it is the faster one."""
    paired: bool
    """Whether both decoded the same prompts in the same minutes."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One draft on one board."""

    board: Board
    row: BoardRow
    ranked: int
    """Rows that it is ranked among."""
    scale: charts.Scale
    """Of the intervals of tasks and context lengths, and the prompts' dots."""
    histogram: tuple[charts.Bar, ...]
    by_position: tuple[charts.Bar, ...]
    shares: tuple[charts.Part, ...]
    """Of decode time."""
    against: tuple[Against, ...]
    """The drafts nearest in speed, fastest first."""
    history: tuple[BoardRow, ...]
    """All its results on this board, newest first."""


def entry_of(board: Board, row: BoardRow) -> Entry:
    """Computes what the page draws."""
    acceptance = row.summary.acceptance
    positions = acceptance.by_position
    dots = [(value, value) for task in row.summary.tasks for value in task.prompts.values()]
    cells: list[TaskCell | LengthCell] = [*row.per_task.values(), *row.per_length]
    return Entry(
        board,
        row,
        sum(other.rank is not None and other.lossy == row.lossy for other in board.rows),
        charts.Scale.over(
            [row.speedup, *(cell.speedup for cell in cells)], [row.ci, *(cell.ci for cell in cells), *dots]
        ),
        charts.bars(acceptance.histogram, _numbers(0, len(acceptance.histogram)), BARS_WIDTH),
        charts.bars([share or 0.0 for share in positions], _numbers(1, len(positions)), BARS_WIDTH, 1.0)
        if row.k and acceptance.steps
        else (),
        charts.stacked(_shares(row)),
        _against(board, row),
        tuple(found for found in reversed(board.results) if found.draft == row.draft),
    )


def _shares(row: BoardRow) -> list[tuple[str, float]]:
    """A step's parts where its forwards were timed, else what the trials' own clocks tell apart."""
    step = row.summary.prediction.step if row.summary.prediction else None
    if step is not None and step.total_ms > 0:
        return [(name, part / step.total_ms) for name, part in _parts(step) if part > 0]
    timing = row.summary.timing
    parts = (
        ("proposing", timing.propose_share),
        ("verifying", timing.verify_share),
        ("other", timing.other_share),
    )
    return [(name, share) for name, share in parts if share is not None]


def _parts(step: StepTime) -> tuple[tuple[str, float], ...]:
    return (
        ("draft forwards", step.draft_ms),
        ("rest of proposing", step.propose_overhead_ms),
        ("target forward", step.verify_ms),
        ("loop", step.rest_ms),
    )


def _against(board: Board, row: BoardRow) -> tuple[Against, ...]:
    if row.rank is None:
        return ()
    own = contender_of(row)
    rivals = [other for other in board.rows if other.rank and other.lossy == row.lossy]
    place = next(index for index, other in enumerate(rivals) if other.draft == row.draft)
    first = max(0, min(place - _MAX_OTHERS // 2, len(rivals) - _MAX_OTHERS - 1))
    found = []
    for other in rivals[first : first + _MAX_OTHERS + 1]:
        if other.draft == row.draft:
            continue
        ratio = ratio_of(own, contender_of(other))
        paired = other.session == row.session and other.summary.cells == row.summary.cells
        low, high = ratio.ends()
        found.append(Against(other, ratio.ratio, (low, high), row.ahead[other.draft], paired))
    return tuple(found)


def _numbers(first: int, count: int) -> Sequence[str]:
    return [str(number) for number in range(first, first + count)]
