"""When the record of a board fell.

A faster figure alone is no record: it must be faster than the one that holds with the certainty that two
rows of a board need to be told apart (97.5 %).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from draftrank.board.rows import BoardRow
from draftrank.measure.statistics.log_ratio import LogRatio, difference
from draftrank.measure.statistics.ranking_evidence import surely


@dataclass(frozen=True, slots=True)
class SpeedRecord:
    """A result that was surely faster than every record before it."""

    row: BoardRow
    over: BoardRow | None
    """The record that it broke; None of the first."""
    probability: float | None
    """That it is faster than that one."""


def speed_records(results: Iterable[BoardRow]) -> tuple[SpeedRecord, ...]:
    """The records among ranked, lossless results of one board, oldest first.

    Of results measured in the same session only the fastest can set one.
    """
    found: list[SpeedRecord] = []
    for row, log in _fastest_by_session(results):
        if not found:
            found.append(SpeedRecord(row, None, None))
            continue
        held = found[-1].row
        probability = difference(log, _log_of(held) or log).above_one
        if probability >= surely(2):
            found.append(SpeedRecord(row, held, probability))
    return tuple(found)


def _fastest_by_session(results: Iterable[BoardRow]) -> list[tuple[BoardRow, LogRatio]]:
    fastest: dict[str, tuple[BoardRow, LogRatio]] = {}
    for row in sorted(results, key=lambda row: row.draft):
        log = _log_of(row)
        if row.ranked and not row.lossy and log is not None:
            known = fastest.get(row.session)
            if known is None or log.value > known[1].value:
                fastest[row.session] = (row, log)
    return sorted(fastest.values(), key=lambda found: (found[0].measured_at, found[0].session))


def _log_of(row: BoardRow) -> LogRatio | None:
    return row.summary.speedup.log if row.summary.speedup else None
