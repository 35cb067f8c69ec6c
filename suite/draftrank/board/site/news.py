"""What is new on the boards, newest first: results, records that fell, and sessions of servers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from draftrank.board.formats import rank, span, times
from draftrank.board.history import speed_records
from draftrank.board.rows import Board, BoardRow
from draftrank.board.serving import ServedRow, ServingBoard
from draftrank.board.site.addresses import board_page, draft_page, serving_page
from draftrank.catalog.base import sha256_of_json

_MOST = 100


@dataclass(frozen=True, slots=True)
class News:
    """One entry of the feed."""

    id: str
    """An IRI that never changes."""
    title: str
    text: str
    page: str
    """Relative address of what it is about."""
    at: str
    """UTC time, ISO 8601."""


def news_of(boards: Sequence[Board], servings: Sequence[ServingBoard] = ()) -> tuple[News, ...]:
    """The newest entries over all boards."""
    found = [news for board in boards for news in (*_results(board), *_records(board))]
    found += [news for board in servings for news in _sessions(board)]
    return tuple(sorted(found, key=lambda news: (news.at, news.id), reverse=True)[:_MOST])


def _results(board: Board) -> list[News]:
    return [
        _news(board, row, "result", f"{row.title}: {_figure(row)}", _sentence(board, row))
        for row in board.rows
    ]


def _records(board: Board) -> list[News]:
    found = []
    for record in speed_records(board.results):
        if record.over is None:
            continue
        title = f"New record: {record.row.title} with {times(record.row.speedup)}"
        text = (
            f"{_sentence(board, record.row)} It is faster than {record.over.title} "
            f"({times(record.over.speedup)}) with a probability of {100 * (record.probability or 0):.1f} %."
        )
        found.append(_news(board, record.row, "record", title, text, page=board_page(board.key)))
    return found


def _sessions(board: ServingBoard) -> list[News]:
    """One entry per session that gave rows to a serving board."""
    key = board.key
    found: list[News] = []
    for session in board.sessions:
        rows = [row for row in board.rows if row.session == session.record.id]
        if rows:
            counted = f"{len(rows)} draft{'s' if len(rows) > 1 else ''}"
            concurrencies = ", ".join(map(str, session.record.concurrencies))
            title = f"{key.target} in {key.engine_and_dtype}: {counted} at concurrency {concurrencies}"
            text = " ".join(map(_in_server, rows))
            digest = sha256_of_json(["serving", key.id, session.record.id])
            at = session.measured_at
            found.append(News(f"urn:sha256:{digest}", title, text, serving_page(key), at))
    return found


def _in_server(row: ServedRow) -> str:
    if not row.ranked:
        return f"{row.title}: not ranked ({'; '.join(row.reasons) or 'no interval'})."
    figures = ", ".join(
        f"{times(cell.speedup)} ({span(cell.ci)}) at {at}" if cell.ranked else f"not ranked at {at}"
        for at, cell in row.best.items()
    )
    return f"{row.title}: {figures}; switch-off: {row.switch_off.words}."


def _news(board: Board, row: BoardRow, kind: str, title: str, text: str, page: str | None = None) -> News:
    digest = sha256_of_json([kind, board.key.id, row.draft, row.session])
    address = page or draft_page(board.key.target, row.draft)
    return News(f"urn:sha256:{digest}", title, text, address, row.measured_at)


def _figure(row: BoardRow) -> str:
    return times(row.speedup) if row.speedup is not None else "no figure"


def _sentence(board: Board, row: BoardRow) -> str:
    place = f"rank {rank(row.rank)}" if row.rank else f"not ranked ({row.reason or 'no interval'})"
    return f"{_figure(row)} ({span(row.ci)}), {place}, on {board.key.title}."
