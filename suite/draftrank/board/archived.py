"""Boards of an archive of sessions: what one session gives to its board is computed once, and kept; so are serving boards."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import ValidationError

from draftrank.board.as_json import adapter_of
from draftrank.board.ranking import SessionRows, join_boards, rows_of
from draftrank.board.rows import Board
from draftrank.measure.records import Trial
from draftrank.measure.statistics.standing import standing_trials
from draftrank.measure.summaries.summary import summarise
from draftrank.store.archive import Archive, Known

if TYPE_CHECKING:  # a command that shows no servers does not wait for their statistics
    from draftrank.board.serving import ServingBoard

T = TypeVar("T")


def archived_boards(
    archive: Archive, target: str | None = None, suite: str | None = None
) -> tuple[Board, ...]:
    """All boards, or those of one target and one suite, as `build_boards` gives them.

    Raises:
        StoreError: two parts of a session contradict each other.
    """
    return _joined(archive, _chosen(archive, target, suite))


def shown_boards(archive: Archive, target: str | None = None, suite: str | None = None) -> tuple[Board, ...]:
    """The same boards in any order, of each what a table shows: without `results`, and rows without `ahead`.

    A board is computed once for its sessions, and kept, so that of many sessions none is read again. Raises as
    `archived_boards`.
    """
    keys = archive.derived.all_of("board key")
    sessions: dict[str, list[Known]] = defaultdict(list)
    for known in _chosen(archive, target, suite):
        source, key = keys.get(known.id, ("", b""))
        sessions[key.decode() if source == known.source else ""].append(known)
    found, new, unknown = [], {}, sessions.pop("", [])
    for known, rows in zip(unknown, archived_rows(archive, unknown), strict=True):
        sessions[rows.key.id].append(known)
        new[known.id] = known.source, rows.key.id.encode()
    archive.derived.keep("board key", new)
    for board_id, own in sessions.items():
        source = hashlib.sha256(" ".join(sorted(known.source for known in own)).encode()).hexdigest()
        board = _read(Board, archive.derived.find("board", board_id, source))
        if board is None:
            (whole,) = _joined(archive, own)
            board = replace(whole, rows=tuple(replace(row, ahead={}) for row in whole.rows), results=())
            _keep(archive, Board, "board", {board_id: (source, board)})
        found.append(board)
    return tuple(found)


def archived_rows(archive: Archive, sessions: Sequence[Known]) -> list[SessionRows]:
    """What these sessions give to their boards; raises as `archived_boards`."""
    found, new = [], {}
    for known in sessions:
        rows = _read(SessionRows, archive.derived.find("rows", known.id, known.source))
        if rows is None:
            rows = rows_of(summarise(archive.result(known)))
            new[known.id] = known.source, rows
        found.append(rows)
    _keep(archive, SessionRows, "rows", new)
    return found


def archived_servings(
    archive: Archive, target: str | None = None, suite: str | None = None
) -> tuple[ServingBoard, ...]:
    """All serving boards, or those of one target and one suite, as `build_serving_boards` gives them. They are computed
    once for all files and all of the store's serving sessions.

    Raises:
        InvalidInputError: some published sessions are wrong; all are named.
        StoreError: the store cannot be read.
    """
    from draftrank.board.serving import ServingBoard
    from draftrank.board.serving_ranking import build_serving_boards

    kind: Any = tuple[ServingBoard, ...]
    source = archive.serving_sha256
    boards: tuple[ServingBoard, ...] | None = None
    if source is not None:
        boards = _read(kind, archive.derived.find("servings", "all", source))
    if boards is None:
        boards = build_serving_boards(archive.serving)
        if source is not None:
            _keep(archive, kind, "servings", {"all": (source, boards)})
    return tuple(
        board for board in boards if target in (None, board.key.target) and suite in (None, board.key.suite)
    )


def _chosen(archive: Archive, target: str | None, suite: str | None) -> list[Known]:
    return [
        known for known in archive.sessions if target in (None, known.target) and suite in (None, known.suite)
    ]


def _joined(archive: Archive, chosen: Sequence[Known]) -> tuple[Board, ...]:
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


def _read(kind: type[T], text: bytes | None) -> T | None:
    try:
        return None if text is None else cast("T", adapter_of(kind).validate_json(text))
    except ValidationError:
        return None


def _keep(archive: Archive, kind: type[T], name: str, entries: dict[str, tuple[str, T]]) -> None:
    """Keeps values of a type with their sources, but not where JSON loses something: it knows no infinite number."""
    texts = {key: (source, adapter_of(kind).dump_json(value)) for key, (source, value) in entries.items()}
    same = {key: kept for key, kept in texts.items() if _read(kind, kept[1]) == entries[key][1]}
    archive.derived.keep(name, same)
