"""From sessions to boards: which results may be compared, which one stands for a draft, who ranks where.

Rows that the evidence does not tell apart have ranges of ranks that overlap (`measure.statistics.ranking_evidence`). Ranks
never cross target, machine class, backend, dtype, device, mode, suite or version.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from draftrank.board.references import ReferenceRow, newest_of, references_of
from draftrank.board.rows import (
    Board,
    BoardKey,
    BoardRow,
    BoardSession,
    key_of,
    measured_at,
    row_of,
    session_of,
)
from draftrank.catalog.base import sha256_of_json
from draftrank.measure.gates.verdict import judge
from draftrank.measure.records import SessionResult, Trial
from draftrank.measure.statistics.ranking_evidence import Contender, stand
from draftrank.measure.summaries.summary import SessionSummary, summarise


@dataclass(frozen=True, slots=True)
class SessionRows:
    """What one session gives to its board: everything that does not depend on other sessions."""

    key: BoardKey
    created_at: str
    rows: tuple[BoardRow, ...]
    """One per draft, not yet ranked."""
    session: BoardSession
    references: tuple[ReferenceRow, ...]


Trials = Callable[[str, str], Sequence[Trial]]
"""The trials that count of a session and a draft, by their ids."""


def build_boards(results: Iterable[SessionResult]) -> tuple[Board, ...]:
    """All boards of these sessions, sorted by their key; the order of `results` does not matter.

    Of a session that stands twice (e.g. before and after it was continued) the fuller one counts.
    """
    summaries = {result.session.id: summarise(result) for result in _once_each(results)}
    return join_boards(
        map(rows_of, summaries.values()), lambda session, draft: summaries[session].trials.get(draft, ())
    )


def rows_of(summary: SessionSummary) -> SessionRows:
    """What a session gives to its board."""
    drafts = [arm for arm in summary.arms if arm.arm.kind == "draft"]
    return SessionRows(
        key_of(summary.session),
        summary.session.created_at,
        tuple(row_of(summary, arm, judge(summary, arm)) for arm in drafts),
        session_of(summary),
        references_of(summary),
    )


def join_boards(sessions: Iterable[SessionRows], trials: Trials) -> tuple[Board, ...]:
    """All boards of these sessions, each given once in any order, sorted by their key.

    The trials are asked for only of drafts of one session that did not decode the same prompts.
    """
    grouped: dict[BoardKey, list[SessionRows]] = defaultdict(list)
    for session in sessions:
        grouped[session.key].append(session)
    return tuple(_board(key, grouped[key], trials) for key in sorted(grouped, key=_key_order))


def contender_of(row: BoardRow, trials: Callable[[], Sequence[Trial]] = tuple) -> Contender:
    """A row with an interval as what it is in a ranking; `trials` gives its own, where they can be had."""
    assert row.summary.speedup is not None
    tasks = {task.task: task.speedup for task in row.summary.tasks if task.speedup is not None}
    return Contender(row.draft, row.session, row.summary.speedup, trials, row.summary.cells, tasks)


def _board(key: BoardKey, sessions: Sequence[SessionRows], trials: Trials) -> Board:
    newest_first = sorted(sessions, key=_age, reverse=True)
    results: dict[str, list[BoardRow]] = defaultdict(list)
    for session in newest_first:
        for row in session.rows:
            results[row.draft].append(row)
    chosen = [_stands_for_draft(found) for found in results.values()]
    used = {row.session for row in chosen}
    shown = [one.session for one in newest_first if one.session.id in used]
    every = [row for found in results.values() for row in found]
    return Board(
        key,
        _ranked(chosen, trials),
        tuple(shown or [newest_first[0].session]),
        # The board's key fixes the tasks and their prompts, so any session's list is every session's.
        tuple(task.task for task in newest_first[0].session.record.tasks),
        newest_of(one.references for one in newest_first),
        tuple(sorted(every, key=lambda row: (row.measured_at, row.session, row.draft))),
    )


def _stands_for_draft(newest_first: Sequence[BoardRow]) -> BoardRow:
    """The newest recipe's best result: complete in a steady session, else complete, else the fullest;
    the newest of equals.

    Results of earlier recipes under the same id are history. A build that failed names no recipe, so it
    only counts where nothing else does.
    """
    recipes = [row.recipe_sha256 for row in newest_first if row.recipe_sha256]
    current = [row for row in newest_first if not recipes or row.recipe_sha256 == recipes[0]]
    return max(current, key=_standing)  # max keeps the first of equals: the newest


def _standing(row: BoardRow) -> tuple[bool, bool, float]:
    arm = row.summary
    steady = not any(finding.scope == "session" for finding in row.findings)
    return row.complete, steady and row.complete, 1 - arm.missing / arm.planned if arm.planned else 0.0


def _ranked(rows: Sequence[BoardRow], trials: Trials) -> tuple[BoardRow, ...]:
    in_order = sorted(rows, key=lambda row: (-(row.speedup or 0.0), row.draft))
    placed: list[BoardRow] = []
    for lossy in (False, True):  # a faster draft with another output has not won
        ranked = [row for row in in_order if _may_rank(row) and row.lossy == lossy]
        standings = stand(contender_of(row, partial(trials, row.session, row.draft)) for row in ranked)
        # By their ranges: of two that are not told apart, the faster may be the less certain. (The sort is stable.)
        for row in sorted(ranked, key=lambda row: standings[row.draft].rank):
            own = standings[row.draft]
            placed.append(replace(row, rank=own.rank, ahead=own.ahead))
    return (*placed, *(row for row in in_order if not _may_rank(row)))


def _may_rank(row: BoardRow) -> bool:
    return row.ranked and row.ci is not None


def _once_each(results: Iterable[SessionResult]) -> list[SessionResult]:
    by_id: dict[str, list[SessionResult]] = defaultdict(list)
    for result in results:
        by_id[result.session.id].append(result)
    return [max(same, key=_fullness) if len(same) > 1 else same[0] for same in by_id.values()]


def _fullness(result: SessionResult) -> tuple[int, str, str]:
    # The hash decides between results that are equally full, so that their order cannot.
    return len(result.trials), measured_at(result.session), sha256_of_json(result.model_dump(mode="json"))


def _age(session: SessionRows) -> tuple[str, str]:
    return session.created_at, session.session.id


def _key_order(key: BoardKey) -> tuple[str, ...]:
    place = (key.target, key.suite, key.device, key.machine_class, key.backend, key.dtype, key.mode)
    return (*place, key.draftrank_version, key.id)
