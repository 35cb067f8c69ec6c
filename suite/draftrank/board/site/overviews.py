"""What the pages of targets, tasks and machines gather from all boards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from draftrank.board.rows import Board, BoardRow, BoardSession
from draftrank.board.serving import ServedRow, ServingBoard
from draftrank.catalog.target import Target
from draftrank.catalog.task import Task
from draftrank.measure.records import SessionTask

_MAX_ROWS = 12


@dataclass(frozen=True, slots=True)
class TargetView:
    """One target: its boards and what came out ahead on each."""

    id: str
    declared: Target | None
    parameters: int
    weights: tuple[str, ...]
    """Hashes of the weights that were measured; more than one if the target's file changed."""
    boards: tuple[Board, ...]
    drafts: tuple[BoardRow | ServedRow, ...]
    """Every draft once, with its newest result in this engine; one that only servers have measured, with its newest there."""


@dataclass(frozen=True, slots=True)
class TaskView:
    """One task: how drafts do in it."""

    id: str
    declared: Task | None
    used: SessionTask
    """As the newest session used it."""
    boards: tuple[tuple[Board, tuple[BoardRow, ...]], ...]
    """With the fastest ranked drafts in this task."""


@dataclass(frozen=True, slots=True)
class MachineView:
    """One machine class: what it is and what was measured there."""

    id: str
    newest: BoardSession
    boards: tuple[Board, ...]
    sessions: tuple[tuple[Board, BoardSession], ...]
    """Newest first."""


def target_views(
    boards: Sequence[Board], servings: Sequence[ServingBoard], declared: Mapping[str, Target]
) -> tuple[TargetView, ...]:
    """One view per target that has a board of this engine, by id."""
    found = []
    for name, own in _grouped((board.key.target, board) for board in boards):
        served = [row for board in servings if board.key.target == name for row in board.rows]
        newest = _newest(served) | _newest([row for board in own for row in board.rows])
        found.append(
            TargetView(
                name,
                declared.get(name),
                max(own, key=lambda board: board.newest.measured_at).newest.record.target_parameters,
                tuple(sorted({board.key.target_weights_sha256 for board in own})),
                tuple(own),
                tuple(newest[draft] for draft in sorted(newest)),
            )
        )
    return tuple(found)


def task_views(boards: Sequence[Board], declared: Mapping[str, Task]) -> tuple[TaskView, ...]:
    """One view per task that was measured, by id."""
    found = []
    for name, own in _grouped((task, board) for board in boards for task in board.tasks):
        newest = max(own, key=lambda board: (board.newest.measured_at, board.key.id)).newest.record
        used = next(task for task in newest.tasks if task.task == name)
        found.append(
            TaskView(name, declared.get(name), used, tuple((board, _leaders(board, name)) for board in own))
        )
    return tuple(found)


def machine_views(boards: Sequence[Board]) -> tuple[MachineView, ...]:
    """One view per machine class, by id."""
    found = []
    for name, own in _grouped((board.key.machine_class, board) for board in boards):
        sessions = [(board, session) for board in own for session in board.sessions]
        sessions.sort(key=lambda entry: (entry[1].measured_at, entry[1].id), reverse=True)
        found.append(MachineView(name, sessions[0][1], tuple(own), tuple(sessions)))
    return tuple(found)


def _newest(rows: Sequence[BoardRow | ServedRow]) -> dict[str, BoardRow | ServedRow]:
    return {row.draft: row for row in sorted(rows, key=lambda row: row.measured_at)}


def _leaders(board: Board, task: str) -> tuple[BoardRow, ...]:
    ranked = [row for row in board.rows if row.rank and task in row.per_task and row.per_task[task].speedup]
    ranked.sort(key=lambda row: (-(row.per_task[task].speedup or 0.0), row.draft))
    return tuple(ranked[:_MAX_ROWS])


def _grouped(pairs: Iterable[tuple[str, Board]]) -> list[tuple[str, list[Board]]]:
    groups: dict[str, list[Board]] = defaultdict(list)
    for name, board in pairs:
        groups[name].append(board)
    return sorted(groups.items())
