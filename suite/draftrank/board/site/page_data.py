"""What the scripts of a board's page are given: its rows as plain values, and the evidence to rank them anew.

With other weights for the tasks a reader gets other speedups, and other ranks. Both follow from each task's
log speedup and its values without each prompt in turn (`Estimate.left_out`), by the rules of
`measure.statistics`, which `static/evidence.js` repeats in the browser.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np

from draftrank.board.rows import Board, BoardRow
from draftrank.measure.statistics.estimates import Estimate
from draftrank.measure.statistics.log_ratio import CONFIDENCE

_STEPS = 32_767


def page_data(board: Board, page_of: Callable[[BoardRow], str]) -> dict[str, Any]:
    """Plain JSON values; `page_of` gives the address of a draft's page."""
    groups: dict[tuple[str, str], int] = {}
    rows = []
    for row in board.rows:
        group = groups.setdefault((row.session, row.summary.cells), len(groups))
        rows.append(_row(row, page_of(row), group))
    return {
        "confidence": CONFIDENCE,
        "tasks": list(board.tasks),
        "targetParameters": board.newest.record.target_parameters,
        "rows": rows,
    }


def _row(row: BoardRow, page: str, group: int) -> dict[str, Any]:
    """One row; figures are rounded to what is shown and sorted by, evidence is not."""
    tasks = {task.task: task.speedup for task in row.summary.tasks if task.speedup}
    return {
        "draft": row.draft,
        "title": row.title,
        "page": page,
        "proposer": row.proposer,
        "techniques": list(row.techniques),
        "made": " + ".join(row.techniques) or "unknown",
        "trained": row.trained,
        "lossy": row.lossy,
        "ranked": row.rank is not None,
        "complete": row.complete,
        "rank": list(row.rank) if row.rank else None,
        "speedup": _rounded(row.speedup),
        "low": _rounded(row.ci[0]) if row.ci else None,
        "high": _rounded(row.ci[1]) if row.ci else None,
        "tps": _rounded(row.tokens_per_second),
        "acceptance": _rounded(row.acceptance_length),
        "cost": _rounded(row.draft_cost),
        "k": row.k,
        "parameters": row.parameters,
        "bytes": row.bytes_on_disk,
        "memory": row.peak_memory_bytes,
        "build": _rounded(row.build_s),
        "output": _OUTPUTS.get(row.fidelity.status, 5) + (1 - (row.fidelity.exact_match or 0.0)),
        "measured": row.measured_at,
        "positions": [_rounded(share) for share in row.summary.acceptance.by_position],
        "lengths": [
            {
                "tokens": cell.prompt_tokens,
                "speedup": _rounded(cell.speedup),
                "low": _rounded(cell.ci[0]) if cell.ci else None,
                "high": _rounded(cell.ci[1]) if cell.ci else None,
                "acceptance": _rounded(cell.acceptance_length),
            }
            for cell in row.per_length
        ],
        "group": group,
        "session": row.session,
        "evidence": {task: _evidence(found) for task, found in tasks.items()},
    }


_OUTPUTS = {"identical": 0, "ties": 1, "lossy": 3, "breaks": 4}
"""How outputs are sorted: the most faithful first."""


def _evidence(found: Estimate) -> list[Any] | None:
    """[log speedup, largest deviation, deviations without each prompt in turn as base64 of int16 (little
    endian), in parts of the largest]; None where the task has no interval."""
    if found.log is None or not found.left_out:
        return None
    left = np.array(found.left_out)
    apart = left - left.mean()
    largest = float(np.max(np.abs(apart))) or 1.0
    packed = np.round(apart / largest * _STEPS).astype("<i2").tobytes()
    return [found.log.value, largest, base64.b64encode(packed).decode()]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
