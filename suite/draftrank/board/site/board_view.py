"""What a board's page shows, beside the board itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from draftrank.board.history import SpeedRecord, speed_records
from draftrank.board.order import version_of, weight
from draftrank.board.rows import Board, BoardKey, BoardRow
from draftrank.board.site import charts
from draftrank.board.site.addresses import board_page, draft_page
from draftrank.board.site.page_data import page_data
from draftrank.board.site.plots import Plot, plots_of, specs_of, with_rows


@dataclass(frozen=True, slots=True)
class Choice:
    """Another value of one of a board's coordinates."""

    label: str
    address: str
    """Page of the board that is nearest to this one and has the value."""
    chosen: bool
    """Whether it is this board's own."""


@dataclass(frozen=True, slots=True)
class Switch:
    """One coordinate of a board, e.g. its backend, with every value that some board has."""

    name: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class BoardView:
    """One board, ready for its page."""

    board: Board
    address: str
    title: str
    scale: charts.Scale
    """Of the interval bars."""
    columns: frozenset[str]
    """Columns of the ranking that have a figure in some row."""
    data: dict[str, Any]
    """For the scripts."""
    plots: tuple[Plot, ...]
    records: tuple[SpeedRecord, ...]
    techniques: tuple[str, ...]
    """Of all rows, sorted."""
    plain: Board
    """The board with the fastest plain decoding of this target and suite on this machine, in any backend and dtype: a
    speedup over slow decoding is no achievement."""
    switches: tuple[Switch, ...]

    def over_plain(self, row: BoardRow) -> float | None:
        """A row's speedup over the fastest plain decoding, where that is another board's: its own speedup times the
        ratio of its session's baseline to that board's. The two are of different sessions, so it is a rough figure."""
        plain = self.plain.newest.baseline_tokens_per_second
        own = {session.id: session.baseline_tokens_per_second for session in self.board.sessions}.get(
            row.session
        )
        if self.plain is self.board or not plain or not own or row.speedup is None:
            return None
        return row.speedup * own / plain

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks in which some row has a speedup."""
        return tuple(task for task in self.board.tasks if any(_in_task(row, task) for row in self.board.rows))

    @property
    def specs(self) -> dict[str, Any]:
        """The plots for the scripts, to be filled with the rows of `data`."""
        return specs_of(self.plots)

    def drawn(self, plot: Plot) -> dict[str, Any]:
        """A plot with its data."""
        return with_rows(plot, self.data["rows"])


_COLUMNS: dict[str, Callable[[BoardRow], object]] = {
    "tps": lambda row: row.tokens_per_second,
    "acceptance": lambda row: row.acceptance_length,
    "cost": lambda row: row.draft_cost is not None,
    "parameters": lambda row: row.parameters,
    "bytes": lambda row: row.bytes_on_disk,
    "memory": lambda row: row.peak_memory_bytes,
    "build": lambda row: row.build_s,
}
"""Columns that a ranking leaves out where no row has this."""

_COORDINATES: tuple[tuple[str, Callable[[BoardKey], str]], ...] = (
    ("Target", lambda key: key.target),
    ("Machine", lambda key: key.machine_class),
    ("Backend", lambda key: key.backend_and_dtype),
    ("Decoding", lambda key: key.mode),
    ("Suite", lambda key: key.suite),
    ("Version", lambda key: key.draftrank_version + (" (archived)" if key.archived else "")),
)


def views_of(boards: Sequence[Board], *, plots: bool = True) -> tuple[BoardView, ...]:
    """Every board's view, in the order of the boards, with its plots if asked."""
    return tuple(_view(board, boards, plots) for board in boards)


def heaviest_of_each(views: Sequence[BoardView], plot: str) -> tuple[BoardView, ...]:
    """Of each target, machine, backend and mode the board that tells most, where it has this plot."""
    found: dict[tuple[str, ...], BoardView] = {}
    for view in sorted(views, key=lambda view: (version_of(view.board.key), *weight(view.board))):
        if any(one.id == plot for one in view.plots):
            key = view.board.key
            found[key.target, key.machine_class, key.device, key.backend_and_dtype, key.mode] = view
    return tuple(found[place] for place in sorted(found))


def _view(board: Board, boards: Sequence[Board], plots: bool) -> BoardView:
    address = board_page(board.key)
    data = page_data(board, lambda row: draft_page(board.key.target, row.draft))
    return BoardView(
        board,
        address,
        board.key.title,
        charts.Scale.over([row.speedup for row in board.rows], [row.ci for row in board.rows]),
        frozenset(name for name, figure in _COLUMNS.items() if any(map(figure, board.rows))),
        data,
        plots_of(data["rows"], board.newest.record.target_parameters) if plots else (),
        speed_records(board.results),
        tuple(sorted({technique for row in board.rows for technique in row.techniques})),
        _fastest_plain(board, boards),
        _switches(board, boards),
    )


def _fastest_plain(board: Board, boards: Sequence[Board]) -> Board:
    def place(key: BoardKey) -> tuple[str, ...]:
        version = key.draftrank_version
        return version, key.target, key.target_weights_sha256, key.machine_class, key.suite_sha256, key.mode

    alike = [other for other in boards if place(other.key) == place(board.key)]
    return max(alike, key=lambda other: (other.newest.baseline_tokens_per_second or 0.0, other is board))


def _switches(board: Board, boards: Sequence[Board]) -> tuple[Switch, ...]:
    """Coordinates in which boards differ; a single board needs none."""
    found = []
    for name, value_of in _COORDINATES:
        values = sorted({value_of(other.key) for other in boards})
        if len(values) < 2:
            continue
        choices = []
        for value in values:
            chosen = value == value_of(board.key)
            having = [other for other in boards if value_of(other.key) == value]
            nearest = board if chosen else max(having, key=lambda other: _nearness(other, board))
            choices.append(Choice(value, board_page(nearest.key), chosen))
        found.append(Switch(name, tuple(choices)))
    return tuple(found)


def _nearness(other: Board, board: Board) -> tuple[int, tuple[int, ...], str, str]:
    alike = sum(value_of(other.key) == value_of(board.key) for _, value_of in _COORDINATES)
    return alike, version_of(other.key), other.newest.measured_at, other.key.id


def _in_task(row: BoardRow, task: str) -> bool:
    return task in row.per_task and row.per_task[task].speedup is not None
