"""The drafts that lead, measured again: has a published figure moved?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from draftrank.board.ranking import build_boards
from draftrank.board.rows import Board, BoardRow
from draftrank.catalog.backend import asked_dtype, is_backend
from draftrank.catalog.workspace import Workspace
from draftrank.jobs.session import RunRequest, run
from draftrank.measure.journal import Journal
from draftrank.measure.records import SessionResult
from draftrank.measure.statistics.comparing import SpeedRatio
from draftrank.measure.statistics.estimates import Interval
from draftrank.measure.statistics.log_ratio import difference
from draftrank.progress import Progress
from draftrank.workflows.challenge import leaders


@dataclass(frozen=True, slots=True)
class Moved:
    """A published speedup beside the one that was measured now."""

    draft: str
    published: float
    now: float
    ratio: SpeedRatio
    """Now over then; the two sessions are independent."""

    @property
    def moved(self) -> bool:
        """Whether the difference is more than both intervals allow."""
        return self.ratio.answer != "can't tell"


@dataclass(frozen=True, slots=True)
class Remeasured:
    """One board's leaders, measured again."""

    result: SessionResult
    drafts: tuple[Moved, ...]
    """Those that both sessions give an interval for."""


def remeasure(
    workspace: Workspace, board: Board, journal: Journal, *, most: int, progress: Progress
) -> Remeasured | None:
    """Measures a board's leaders in a session of its own; None where no recipe is still what they were made by."""
    drafts = leaders(workspace, board)[:most]
    if not drafts:
        return None
    session = board.newest.record
    request = RunRequest(
        target=board.key.target,
        drafts=drafts,
        suite=board.key.suite,
        backend=session.backend if is_backend(session.backend) else "auto",
        dtype=asked_dtype(session.backend, session.dtype),
        device=session.device,
        mode=session.mode,
        fresh=True,
    )
    result = run(workspace, request, journal, progress)
    (again,) = build_boards([result])
    return Remeasured(result, tuple(_moves(board.rows, again.rows)))


def _moves(published: Iterable[BoardRow], now: Iterable[BoardRow]) -> Iterable[Moved]:
    before = {row.draft: row for row in published}
    for row in now:
        then, again = before[row.draft].summary.speedup, row.summary.speedup
        if then is None or again is None or then.log is None or again.log is None:
            continue
        log = difference(again.log, then.log)
        ratio = SpeedRatio(log.ratio, Interval(*log.ends()), log.above_one)
        yield Moved(row.draft, then.value, again.value, ratio)
