"""Boards as one JSON document, for scripts and for download from the site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from draftrank.board.references import ReferenceRow
from draftrank.board.rows import Board, BoardRow, BoardSession
from draftrank.board.serving import ServedFigures, ServedRow, ServingBoard
from draftrank.measure.statistics.estimates import Estimate

SCHEMA_VERSION = 1
NOT_SHOWN = ("build", "summary", "findings")
"""Fields of a row that the document leaves out."""
SERVED_NOT_SHOWN = ("arms", "switch_off", "build")
"""Fields of a served row that the document leaves out or gives in another form."""
_DOUBT = 0.0005


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
            "plain": [_figures(found) for found in board.newest.plain.values()],
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
        "references": [_reference(reference) for reference in board.references],
    }


def _session(session: BoardSession) -> dict[str, Any]:
    return {
        "id": session.id,
        "measured_at": session.measured_at,
        "baseline_tokens_per_second": session.baseline_tokens_per_second,
        "noise": _noise(session.noise),
        "warnings": list(session.warnings),
        "backend": session.backend,
        "prompts": session.prompts,
        "repeats": session.repeats,
    }


def _reference(reference: ReferenceRow) -> dict[str, Any]:
    ends = {"ci": _pair(reference.ci), "beside_ci": _pair(reference.beside_ci)}
    return asdict(reference) | ends | {"differs": list(reference.differs)}


def _noise(noise: Estimate | None) -> dict[str, Any] | None:
    if noise is None:
        return None
    interval = noise.interval
    return {"speedup": noise.value, "ci": [interval.low, interval.high] if interval else None}


def _row(row: BoardRow) -> dict[str, Any]:
    plain = {name: getattr(row, name) for name in BoardRow.__slots__ if name not in NOT_SHOWN}
    plain |= {
        "rank": _pair(row.rank),
        "ci": _pair(row.ci),
        "ahead": {name: value for name, value in row.ahead.items() if _DOUBT < value < 1 - _DOUBT},
        "complete": row.complete,
        "techniques": list(row.techniques),
        "remarks": list(row.remarks),
        "fidelity": asdict(row.fidelity),
        "quality": asdict(row.quality) if row.quality else None,
        "baseline_quality": asdict(row.baseline_quality) if row.baseline_quality else None,
        "gates": [finding.gate for finding in row.findings],
        "per_task": {task: asdict(cell) | {"ci": _pair(cell.ci)} for task, cell in row.per_task.items()},
    }
    return plain


def _served_row(row: ServedRow) -> dict[str, Any]:
    plain = {name: getattr(row, name) for name in ServedRow.__slots__ if name not in SERVED_NOT_SHOWN}
    return plain | {
        "techniques": list(row.techniques),
        "differs": list(row.differs),
        "best": {str(at): _figures(found) for at, found in row.best.items()},
        "by_k": [_figures(found) for figures in row.arms for found in figures],
        "best_k": {str(at): list(found) for at, found in row.best_k.items()},
        "switch_off_at": row.switch_off.at,
        "switch_off_words": row.switch_off.words,
    }


def _figures(found: ServedFigures) -> dict[str, Any]:
    plain = asdict(found)
    pairs = {name: _pair(plain[name]) for name in ("rank", "ci", "tpot_ci", "ttft_ci")}
    return plain | pairs | {"gates": list(found.gates)}


def _pair(ends: tuple[Any, Any] | None) -> list[Any] | None:
    return list(ends) if ends else None
