"""Boards of an archive of sessions: what one session gives to its board is computed once, and kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cache

from pydantic import TypeAdapter, ValidationError

from draftrank.board.ranking import SessionRows, join_boards, rows_of
from draftrank.board.rows import Board
from draftrank.measure.records import Trial
from draftrank.measure.statistics.standing import standing_trials
from draftrank.measure.summaries.summary import summarise
from draftrank.store.archive import Archive, Known


def archived_boards(
    archive: Archive, target: str | None = None, suite: str | None = None
) -> tuple[Board, ...]:
    """All boards, or those of one target and one suite, as `build_boards` gives them.

    Raises:
        StoreError: two parts of a session contradict each other.
    """
    chosen = [
        known for known in archive.sessions if target in (None, known.target) and suite in (None, known.suite)
    ]
    by_id = {known.id: known for known in chosen}

    @cache
    def trials_of(session: str) -> dict[str, list[Trial]]:
        found: dict[str, list[Trial]] = defaultdict(list)
        for trial in standing_trials(archive.result(by_id[session]).trials):
            found[trial.arm].append(trial)
        return found

    def trials(session: str, draft: str) -> Sequence[Trial]:
        return trials_of(session)[draft]

    return join_boards(archived_rows(archive, chosen), trials)


def archived_rows(archive: Archive, sessions: Sequence[Known]) -> list[SessionRows]:
    """What these sessions give to their boards; raises as `archived_boards`."""
    kept = archive.derived.all_of("rows")
    found, new = [], {}
    for known in sessions:
        source, text = kept.get(known.id, ("", b""))
        rows = _read(text) if source == known.source else None
        if rows is None:
            rows = rows_of(summarise(archive.result(known)))
            text = _adapter().dump_json(rows)
            if _read(text) == rows:  # not kept where JSON loses something: it knows no infinite number
                new[known.id] = known.source, text
        found.append(rows)
    archive.derived.keep("rows", new)
    return found


def _read(text: bytes) -> SessionRows | None:
    try:
        return _adapter().validate_json(text)
    except ValidationError:
        return None


@cache
def _adapter() -> TypeAdapter[SessionRows]:
    return TypeAdapter(SessionRows)
