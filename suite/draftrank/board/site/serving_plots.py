"""The plots of a serving board: speedup against concurrency, and tokens per second of each user against the total."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from draftrank.board.serving import ServedFigures, ServedRow, ServingBoard
from draftrank.board.site.plots import POINTS, SPREAD, Plot, layered, no_gain, quantity, readable

CURVE, TRADE_OFF = "curve", "trade-off"
PLAIN = "plain server"
_DODGE = 0.035
"""Between the intervals of two drafts at one concurrency, in doublings."""
_MAX_DRAFTS = 10
"""Drafts that are drawn, those that gain most; more lines cannot be told apart."""


def serving_rows(board: ServingBoard) -> list[dict[str, Any]]:
    """What the plots show: one row for each draft, and the plain server, at each concurrency."""
    drawn = _drawn(board)
    found = [_row(PLAIN, cell, float(cell.concurrency), off=False) for cell in board.newest.plain.values()]
    for index, row in enumerate(drawn):
        for at, cell in row.best.items():
            if cell.ranked:
                place = at * 2 ** (_DODGE * (index - (len(drawn) - 1) / 2))
                found.append(_row(row.draft, cell, place, off=at == row.switch_off.at))
    return found


def serving_plots(board: ServingBoard) -> tuple[Plot, ...]:
    """Both plots; none without a ranked draft."""
    if not any(row.ranked for row in board.rows):
        return ()
    return _curve(board), _trade_off(board)


def _drawn(board: ServingBoard) -> list[ServedRow]:
    return [row for row in board.rows if row.ranked][:_MAX_DRAFTS]


def _row(name: str, cell: ServedFigures, place: float, *, off: bool) -> dict[str, Any]:
    return {
        "draft": readable(name),
        "k": cell.k,
        "concurrency": cell.concurrency,
        "place": place,
        "speedup": cell.speedup,
        "low": cell.ci[0] if cell.ci else None,
        "high": cell.ci[1] if cell.ci else None,
        "throughput": cell.throughput,
        "user": cell.per_user,
        "off": off,
    }


def _told_apart(board: ServingBoard, *, plain: bool) -> dict[str, Any]:
    """Colours and shapes of the drafts, the same in both plots; the legend names the plain server only where it is drawn."""
    names = [PLAIN, *(readable(row.draft) for row in _drawn(board))]
    return {
        "field": "draft",
        "type": "nominal",
        "title": None,
        "scale": {"domain": names},
        "legend": {"values": names if plain else names[1:]},
    }


_TOOLTIP = [
    {"field": "draft"},
    {"field": "k"},
    {"field": "concurrency"},
    {"field": "speedup", "format": ".2f"},
    {"field": "low", "title": "95 % from", "format": ".3f"},
    {"field": "high", "title": "to", "format": ".3f"},
    {"field": "user", "title": "tokens/s per user", "format": ".1f"},
    {"field": "throughput", "title": "tokens/s in total", "format": ".1f"},
]


def _curve(board: ServingBoard) -> Plot:
    draft = _told_apart(board, plain=False)
    x = quantity(
        "place",
        "requests in flight (concurrency)",
        scale={"type": "log", "base": 2, "nice": False, "padding": 24},
        axis={"values": list(board.concurrencies), "format": "d", "grid": False},
    )
    y = quantity("speedup", "speedup (throughput over the plain server's)", scale=SPREAD)
    placed = {"x": x, "y": y, "color": draft}
    intervals = {
        "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.55},
        "encoding": {**placed, "y": y | {"field": "low"}, "y2": {"field": "high"}},
    }
    lines = {"mark": {"type": "line", "strokeWidth": 2}, "encoding": placed}
    points = {"mark": POINTS, "encoding": {**placed, "shape": draft, "tooltip": _TOOLTIP}}
    off = {
        "transform": [{"filter": "datum.off"}],
        "mark": {"type": "text", "text": "off", "dy": -14, "fontSize": 11, "fontWeight": 600},
        "encoding": placed,
    }
    ends = "; ".join(f"{row.draft}: {row.switch_off.words}" for row in _drawn(board))
    return Plot(
        CURVE,
        "Speedup against concurrency",
        "Each draft's speedup with its 95 % interval over the number of requests in flight. Above the dashed line it pays. "
        f"“off” marks the switch-off point. Uncertainty of the switch-off points: {ends}.",
        layered([no_gain(y), intervals, lines, points, off], {"filter": "isValid(datum.speedup)"}),
    )


def _trade_off(board: ServingBoard) -> Plot:
    draft = _told_apart(board, plain=True)
    x = quantity("user", "tokens/s per user", scale=SPREAD)
    y = quantity("throughput", "tokens/s in total", scale=SPREAD)
    points = {
        "mark": POINTS,
        "encoding": {"x": x, "y": y, "color": draft, "shape": draft, "tooltip": _TOOLTIP},
    }
    return Plot(
        TRADE_OFF,
        "Tokens per second: each user's against the total",
        "Points further right serve each user faster, higher ones serve more in total. The dashed "
        "line is the Pareto frontier of the plain server, the solid line that of the drafts; numbers are concurrencies.",
        layered(
            [
                _line(board.plain_frontier, x, y, [6, 3]),
                _line(board.frontier, x, y, [1, 0]),
                points,
                _numbers(board.plain_frontier, x, y, -1),
                _numbers(board.frontier, x, y, 1),
            ],
            {"filter": "isValid(datum.user) && isValid(datum.throughput)"},
        ),
    )


def _line(
    cells: Sequence[ServedFigures], x: dict[str, Any], y: dict[str, Any], dash: list[int]
) -> dict[str, Any]:
    return {
        **_values(cells),
        "mark": {"type": "line", "strokeDash": dash, "strokeWidth": 1.5, "opacity": 0.8},
        "encoding": {"x": x, "y": y, "order": {"field": "user"}},
    }


def _numbers(
    cells: Sequence[ServedFigures], x: dict[str, Any], y: dict[str, Any], side: int
) -> dict[str, Any]:
    """Concurrencies beside the points of a frontier, at their right (1) or left (-1)."""
    align = "left" if side > 0 else "right"
    return {
        **_values(cells),
        "mark": {"type": "text", "align": align, "dx": 8 * side, "dy": -6 * side, "fontSize": 10},
        "encoding": {"x": x, "y": y, "text": {"field": "concurrency"}},
    }


def _values(cells: Sequence[ServedFigures]) -> dict[str, Any]:
    found = [
        {"user": cell.per_user, "throughput": cell.throughput, "concurrency": cell.concurrency}
        for cell in cells
    ]
    return {"data": {"values": found}, "transform": []}
