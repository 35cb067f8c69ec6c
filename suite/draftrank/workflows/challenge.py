"""New drafts against those that lead now: one session for each target, with all of them in it.

Only drafts of one session are compared prompt by prompt, so a challenger is measured beside the drafts it
has to beat and not against figures of another day.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from draftrank.board.ranking import build_boards
from draftrank.board.rows import Board, BoardKey, BoardRow
from draftrank.catalog.backend import asked_dtype
from draftrank.catalog.changes import ToMeasure
from draftrank.catalog.workspace import Workspace
from draftrank.errors import InvalidInputError
from draftrank.jobs.session import RunRequest
from draftrank.measure.records import SessionResult

FIRST_INCUMBENT = "ngram"
"""The draft to beat where nothing is published yet: it needs no model, so anything else must be worth one."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """One session to be measured."""

    target: str
    challengers: tuple[str, ...]
    """Ids of the drafts in question."""
    incumbents: tuple[str, ...]
    """Ids of the drafts that lead now, the fastest first."""

    def request(self, like: RunRequest) -> RunRequest:
        """The run that measures it, in all else as `like`."""
        return replace(like, target=self.target, drafts=(*self.challengers, *self.incumbents))


def plan_challenges(
    workspace: Workspace,
    to_measure: Iterable[ToMeasure],
    published: Sequence[SessionResult],
    like: RunRequest,
    *,
    most_incumbents: int,
) -> tuple[Challenge, ...]:
    """One challenge for each target with a draft to be measured, by target.

    Args:
        workspace: where recipes lie: an incumbent whose recipe is gone, or has become another, is passed over.
        like: suite, backend, dtype, device and mode of the boards in question.
    """
    challengers: dict[str, list[str]] = {}
    for one in to_measure:
        challengers.setdefault(one.target, []).append(one.draft)
    boards = build_boards(published)
    return tuple(
        Challenge(
            target,
            tuple(drafts),
            _incumbents(workspace, target, drafts, _boards_like(boards, target, like))[:most_incumbents],
        )
        for target, drafts in sorted(challengers.items())
    )


def _boards_like(boards: Iterable[Board], target: str, like: RunRequest) -> list[Board]:
    """Boards of these settings on any machine, those of the newest session first; what is `auto` may be anything."""

    def is_like(key: BoardKey) -> bool:
        wanted = (like.backend, like.dtype, like.device)
        measured = (key.backend, asked_dtype(key.backend, key.dtype), key.device)
        same = all(asked in ("auto", one) for asked, one in zip(wanted, measured, strict=True))
        return same and (key.target, key.suite, key.mode) == (target, like.suite, like.mode.label)

    found = [board for board in boards if is_like(board.key)]
    return sorted(found, key=lambda board: board.newest.measured_at, reverse=True)


def leaders(workspace: Workspace, board: Board) -> tuple[str, ...]:
    """Ids of a board's ranked lossless drafts whose recipes are still what is declared, the fastest first."""
    return tuple(
        row.draft
        for row in board.rows
        if row.rank and not row.lossy and _stands(workspace, board.key.target, row)
    )


def _incumbents(
    workspace: Workspace, target: str, challengers: Sequence[str], boards: Sequence[Board]
) -> tuple[str, ...]:
    found = tuple(
        draft for board in boards[:1] for draft in leaders(workspace, board) if draft not in challengers
    )
    known = {path.stem for path in workspace.recipe_paths(target)}
    if not found and FIRST_INCUMBENT in known - set(challengers):
        return (FIRST_INCUMBENT,)
    return found


def _stands(workspace: Workspace, target: str, row: BoardRow) -> bool:
    """Whether the row's recipe is still what is declared."""
    try:
        return workspace.recipe(target, row.draft).content_sha256() == row.recipe_sha256
    except InvalidInputError:
        return False
