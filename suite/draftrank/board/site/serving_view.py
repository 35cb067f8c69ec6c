"""What the pages of serving boards show, beside the boards themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from draftrank.board.formats import heat
from draftrank.board.serving import ServedFigures, ServedRow, ServingBoard
from draftrank.board.site.addresses import serving_page
from draftrank.board.site.plots import Plot, specs_of
from draftrank.board.site.serving_plots import serving_plots, serving_rows

SIGNS = {"faster": "▲", "slower": "▼", "can't tell": "≈", "not ranked": ""}
"""Before a speedup, so that it is not told by its colour alone."""


@dataclass(frozen=True, slots=True)
class ServingView:
    """One serving board, ready for its page."""

    board: ServingBoard
    address: str
    data: dict[str, Any]
    """For the scripts."""
    plots: tuple[Plot, ...]

    @property
    def energy(self) -> bool:
        """Whether any figure has its energy."""
        cells = [cell for row in self.board.rows for cell in row.best.values()]
        return any(
            cell.energy_per_token_j is not None for cell in (*cells, *self.board.newest.plain.values())
        )

    @property
    def specs(self) -> dict[str, Any]:
        """The plots for the scripts, to be filled with the rows of `data`."""
        return specs_of(self.plots)

    def drawn(self, plot: Plot) -> dict[str, Any]:
        """A plot with its data."""
        return plot.spec | {"datasets": {"drafts": self.data["rows"]}}


@dataclass(frozen=True, slots=True)
class ServedEntry:
    """One draft on one serving board, for the draft's page."""

    board: ServingBoard
    row: ServedRow


def serving_views(boards: Sequence[ServingBoard], *, plots: bool = True) -> tuple[ServingView, ...]:
    """Every serving board's view, in the order of the boards, with its plots if asked."""
    return tuple(
        ServingView(
            board,
            serving_page(board.key),
            {"rows": serving_rows(board)},
            serving_plots(board) if plots else (),
        )
        for board in boards
    )


def served_entries(boards: Sequence[ServingBoard], target: str, draft: str) -> tuple[ServedEntry, ...]:
    """What serving boards know of a draft."""
    return tuple(
        ServedEntry(board, row)
        for board in boards
        if board.key.target == target
        for row in board.rows
        if row.draft == draft
    )


def tone(found: ServedFigures) -> str:
    """Class of a speedup's cell: as in a heatmap where it is surely faster or slower, however little; else none."""
    least = {"faster": "fast-1", "slower": "slow-1"}.get(found.answer)
    if least is None:
        return "even" if found.ranked else "blank"
    step = heat(found.speedup)
    return step if step != "even" else least
