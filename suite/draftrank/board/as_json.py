"""Boards as one JSON document, for scripts and for download from the site."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from typing import Any

from pydantic import TypeAdapter

from draftrank.board.rows import Board, BoardRow, BoardSession
from draftrank.board.serving import ServedRow, ServingBoard
from draftrank.measure.statistics.estimates import Estimate, ends_of

SCHEMA_VERSION = 1
NOT_SHOWN = ("build", "summary", "findings")
"""Fields of a row that the document leaves out."""
SESSION_NOT_SHOWN = ("machine", "noise", "record")
"""Fields of a session that the document leaves out or gives in another form."""
SERVED_NOT_SHOWN = ("arms", "switch_off", "build")
"""Fields of a served row that the document leaves out or gives in another form."""
_DOUBT = 0.0005
_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}


def board_document(boards: Sequence[Board]) -> dict[str, Any]:
    """`{"schema_version", "boards": [heads], "rows": [...]}`, plain JSON values only.

    Each row names its board's id under `board`. Of a single board the head's fields (target, machine,
    baseline_tokens_per_second, noise, …) also stand beside `rows`.
    """
    heads = [_head(board) for board in boards]
    rows = [{"board": board.key.id, **_row(row)} for board in boards for row in board.rows]
    shared = heads[0] if len(heads) == 1 else {}
    return {"schema_version": SCHEMA_VERSION, **shared, "boards": heads, "rows": rows}


def serving_document(boards: Sequence[ServingBoard]) -> list[dict[str, Any]]:
    """Every serving board with its rows, plain JSON values only."""
    return [
        {
            "id": board.key.id,
            **asdict(board.key),
            "machine": board.newest.record.machine.model_dump(mode="json"),
            "measured_at": board.newest.measured_at,
            "sessions": [session.record.id for session in board.sessions],
            "warnings": list(board.newest.record.warnings),
            "concurrencies": list(board.concurrencies),
            "plain": [_plain(found) for found in board.newest.plain.values()],
            "noise": [
                {"concurrency": at, **(_noise(noise) or {"speedup": None, "ci": None})}
                for at, noise in board.newest.noise.items()
            ],
            "rows": [_served_row(row) for row in board.rows],
        }
        for board in boards
    ]


def _head(board: Board) -> dict[str, Any]:
    newest = board.newest
    return {
        "id": board.key.id,
        **asdict(board.key),
        "machine": newest.machine.model_dump(mode="json"),
        "baseline_tokens_per_second": newest.baseline_tokens_per_second,
        "noise": _noise(newest.noise),
        "warnings": list(newest.warnings),
        "tasks": list(board.tasks),
        "sessions": [_session(session) for session in board.sessions],
        "references": [_plain(reference) for reference in board.references],
    }


def _session(session: BoardSession) -> dict[str, Any]:
    return _plain(session, SESSION_NOT_SHOWN) | {"noise": _noise(session.noise)}


def _noise(noise: Estimate | None) -> dict[str, Any] | None:
    ends = ends_of(noise)
    return {"speedup": noise.value, "ci": list(ends) if ends else None} if noise else None


def _row(row: BoardRow) -> dict[str, Any]:
    unsure = {name: value for name, value in row.ahead.items() if _DOUBT < value < 1 - _DOUBT}
    return _plain(replace(row, ahead=unsure), NOT_SHOWN) | {
        "complete": row.complete,
        "gates": [finding.gate for finding in row.findings],
    }


def _served_row(row: ServedRow) -> dict[str, Any]:
    return _plain(row, SERVED_NOT_SHOWN) | {
        "by_k": [_plain(found) for figures in row.arms for found in figures],
        "switch_off_at": row.switch_off.at,
        "switch_off_words": row.switch_off.words,
    }


def _plain(value: Any, without: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a dataclass as JSON values."""
    found: dict[str, Any] = adapter_of(type(value)).dump_python(value, mode="json", exclude=set(without))
    return found


def adapter_of(kind: type[Any]) -> TypeAdapter[Any]:
    """What reads and writes values of a type as JSON; made once, which takes time."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]
