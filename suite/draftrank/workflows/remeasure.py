"""The drafts that lead, measured again: has a published figure moved?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from draftrank.board.ranking import build_boards
from draftrank.board.rows import Board, BoardRow
from draftrank.catalog.backend import asked_dtype, is_backend
from draftrank.catalog.task import Suite
from draftrank.catalog.workspace import Workspace
from draftrank.errors import InvalidInputError
from draftrank.jobs.session import RunRequest, alone, plan_run
from draftrank.measure.journal import Journal
from draftrank.measure.records import Session, SessionResult
from draftrank.measure.sessions.plan import session_task
from draftrank.measure.sessions.session import run_session
from draftrank.measure.statistics.comparing import SpeedRatio
from draftrank.measure.statistics.estimates import Interval
from draftrank.measure.statistics.log_ratio import difference
from draftrank.progress import Progress
from draftrank.workflows.challenge import leaders
from draftrank.workflows.declared_alike import check_target, suite_of


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
    """Measures a board's leaders in a session of its own, of the same suite; None where no recipe is still what they were made
    by, and with a message where target or prompts are no longer the board's."""
    drafts = leaders(workspace, board)[:most]
    if not drafts:
        return None
    session = board.newest.record
    try:
        suite = suite_of(workspace, session)
        reason = _why_not(workspace, session, suite)
    except InvalidInputError as error:
        reason = str(error)
    if reason is not None:
        progress.message(f"{board.key.title} is left out: {reason}; measure its drafts with `draftrank run`")
        return None
    request = RunRequest(
        target=board.key.target,
        drafts=drafts,
        backend=session.backend if is_backend(session.backend) else "auto",
        dtype=asked_dtype(session.backend, session.dtype),
        device=session.device,
        mode=session.mode,
    )
    with alone(workspace, progress):
        plan = plan_run(workspace, request, progress, suite=suite)
        result = run_session(plan, journal, fresh=True, progress=progress)
    (again,) = build_boards([result])
    return Remeasured(result, tuple(_moves(board.rows, again.rows)))


def _why_not(workspace: Workspace, session: Session, suite: Suite) -> str | None:
    """Why figures of now would not be comparable with a session's; None where they are.

    Raises:
        InvalidInputError: a declaration is missing or invalid.
    """
    target = check_target(workspace, session)
    if target.status == "fails":
        return target.detail
    found, missing = workspace.prompts(suite)
    here = {entry.task.id: session_task(entry) for entry in found}
    stated = {task.task: task.declared for task in session.tasks}
    differing = sorted(task for task in here.keys() | stated.keys() if here.get(task) != stated.get(task))
    reasons = [
        missing.get(task, f"the prompts of {task} are not those of session {session.id}")
        for task in differing
    ]
    return "; ".join(reasons) or None


def _moves(published: Iterable[BoardRow], now: Iterable[BoardRow]) -> Iterable[Moved]:
    before = {row.draft: row for row in published}
    for row in now:
        then, again = before[row.draft].summary.speedup, row.summary.speedup
        if then is None or again is None or then.log is None or again.log is None:
            continue
        log = difference(again.log, then.log)
        ratio = SpeedRatio(log.ratio, Interval(*log.ends()), log.above_one)
        yield Moved(row.draft, then.value, again.value, ratio)
