"""The plots of a board as Vega-Lite specifications, over the rows of `page_data`.

The same specification is drawn to SVG when the site is built and made interactive in the browser.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from draftrank.board.serving import frontier

Theme = Literal["light", "dark"]
Row = Mapping[str, Any]
THEMES: tuple[Theme, ...] = ("light", "dark")
WIDTH, HEIGHT = 560, 340
_KEPT = (
    "draft", "title", "proposer", "made", "techniques", "trained", "lossy", "ranked", "complete", "speedup", "low", "high", "tps",
    "acceptance", "cost", "parameters", "positions", "lengths",
)  # fmt: skip
"""Of a row, what the plots show."""
SIZE = "size"
"""The plot of speedup over size."""
_MAX_LETTERS = 64
_MAX_LINES = 8
"""Drafts that are drawn as lines; more cannot be told apart."""
_DODGE = 0.04
"""Between the intervals of two drafts at one context length, in doublings."""
_STEP_COSTS = (0.0, 0.25, 0.5, 1.0, 2.0)
"""What a step costs beyond one target forward, in target forwards, of the lines of equal cost."""
_PALETTES: dict[Theme, tuple[str, ...]] = {
    "light": (
        "#0f6a5f", "#b4541a", "#4056a1", "#9c2f63", "#6b6f12", "#1f7fb0", "#7a4fb5", "#8a6a4f", "#5c5f66", "#c0392b",
        "#2f8f3a", "#c2187e", "#a67c00", "#23395d",
    ),
    "dark": (
        "#6fd0c1", "#f0a36b", "#9db0f2", "#ee8fb8", "#c9cd68", "#7cc4ea", "#c3a6f0", "#d3b49a", "#a3a7ae", "#f28b7d",
        "#8ee08f", "#ff9ae0", "#ffd866", "#c9d6ee",
    ),
}  # fmt: skip
_INKS: dict[Theme, tuple[str, str, str]] = {
    "light": ("#1c1d20", "#5c5f66", "#dddcd5"),
    "dark": ("#e8e8e4", "#a3a7ae", "#33373d"),
}


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot, without its data."""

    id: str
    title: str
    explanation: str
    """What it shows, also for those who cannot see it."""
    spec: dict[str, Any]
    """Vega-Lite; its rows are the data set `drafts`."""


def plots_of(rows: Sequence[Row], target_parameters: int) -> tuple[Plot, ...]:
    """The plots that these rows can fill; none without a measured row."""
    measured = [row for row in rows if row["speedup"] is not None and row["ranked"]]
    if not measured:
        return ()
    found = []
    if any(row["cost"] is not None for row in measured):
        found.append(_by_cost(measured))
    if any(row["acceptance"] is not None for row in measured):
        found.append(_by_acceptance(measured))
    found.append(_by_size(target_parameters))
    if any(row["positions"] for row in measured):
        found.append(_by_position(measured))
    if any(row["lengths"] for row in measured):
        found += _by_length(measured)
    return tuple(found)


def specs_of(plots: Sequence[Plot]) -> dict[str, Any]:
    """Plots for the scripts, to be filled with rows."""
    return {
        "plots": {plot.id: plot.spec for plot in plots},
        "themes": {theme: config_of(theme) for theme in THEMES},
    }


def config_of(theme: Theme) -> dict[str, Any]:
    """Colours and type of a theme, as a Vega-Lite configuration."""
    ink, soft, line = _INKS[theme]
    font = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"
    axis = {"domainColor": soft, "tickColor": soft, "gridColor": line, "labelColor": soft, "titleColor": soft}
    return {
        "background": None,
        "font": font,
        "view": {"stroke": None},
        "axis": {**axis, "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": 400, "titlePadding": 8},
        "legend": {
            "labelColor": ink,
            "titleColor": soft,
            "titleFontWeight": 400,
            "orient": "bottom",
            "columns": 2,
            "symbolBaseFillColor": soft,
            "symbolBaseStrokeColor": soft,
            "labelLimit": 260,
            "symbolLimit": 16,
        },
        "text": {"color": ink},
        "rule": {"color": soft},
        "line": {"color": soft},
        "range": {"category": list(_PALETTES[theme])},
        "style": {"guide-label": {"font": font}, "guide-title": {"font": font}},
    }


def with_rows(plot: Plot, rows: Sequence[Row]) -> dict[str, Any]:
    """The whole specification, data included."""
    drafts = [{name: readable(row[name]) for name in _KEPT} for row in rows]
    return plot.spec | {"datasets": {"drafts": drafts}}


def readable(value: Any) -> Any:
    """A text short enough for a legend; and a record may hold half a surrogate pair, which no file can."""
    if isinstance(value, list):
        return [readable(item) for item in value]
    if not isinstance(value, str):
        return value
    short = value if len(value) <= _MAX_LETTERS else value[: _MAX_LETTERS - 1] + "…"
    return short.encode("utf-8", "replace").decode()


COST = "draft cost (one forward in target forwards)"
_HOW = "datum.trained ? 'trained by its recipe' : 'no training in its recipe'"
_COLOUR = {"field": "proposer", "type": "nominal", "title": "proposed by"}
_SHAPE = {"field": "how", "type": "nominal", "title": None, "legend": {"orient": "top"}}
_TOOLTIP = [
    {"field": "title", "title": "draft"},
    {"field": "proposer", "title": "proposed by"},
    {"field": "made", "title": "made by"},
    {"field": "speedup", "format": ".2f"},
    {"field": "low", "title": "95 % from", "format": ".3f"},
    {"field": "high", "title": "to", "format": ".3f"},
    {"field": "acceptance", "title": "acceptance length", "format": ".2f"},
    {"field": "cost", "title": "draft cost", "format": ".3f"},
    {"field": "tps", "title": "tokens/s", "format": ".1f"},
    {"field": "lossy"},
]
SPREAD = {"zero": False, "nice": True, "padding": 12}
"""A scale from the lowest to the highest value, with room."""
_SPEEDUP = {"type": "quantitative", "title": "speedup", "scale": SPREAD}
POINTS = {"type": "point", "filled": True, "size": 80, "opacity": 1}


def quantity(field: str, title: str, **others: Any) -> dict[str, Any]:
    """An axis of numbers."""
    return {"field": field, "type": "quantitative", "title": title, **others}


def no_gain(speedup: Mapping[str, Any]) -> dict[str, Any]:
    """The dashed line at a speedup of 1."""
    return {
        "data": {"values": [{"one": 1}]},
        "transform": [],
        "mark": {"type": "rule", "strokeDash": [3, 3]},
        "encoding": {"y": {**speedup, "field": "one"}},
    }


def layered(layers: list[dict[str, Any]], *transforms: dict[str, Any]) -> dict[str, Any]:
    """The specification of layers over the rows that are left by the transforms."""
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": WIDTH,
        "height": HEIGHT,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"name": "drafts"},
        "transform": list(transforms),
        "layer": layers,
    }


def _spec(layers: list[dict[str, Any]], *transforms: dict[str, Any]) -> dict[str, Any]:
    ranked = {"filter": "datum.ranked && isValid(datum.speedup)"}
    return layered(layers, ranked, {"calculate": _HOW, "as": "how"}, *transforms)


def _points(x: dict[str, Any], **of_intervals: Any) -> list[dict[str, Any]]:
    """Points with their intervals."""
    return [
        {
            "mark": {"type": "rule", "opacity": 0.55, "strokeWidth": 2},
            "encoding": {
                "x": x,
                "y": {"field": "low", **_SPEEDUP},
                "y2": {"field": "high"},
                "color": _COLOUR,
                **of_intervals,
            },
        },
        {
            "mark": POINTS,
            "encoding": {
                "x": x,
                "y": {"field": "speedup", **_SPEEDUP},
                "color": _COLOUR,
                "shape": _SHAPE,
                "tooltip": _TOOLTIP,
            },
        },
    ]


def _by_cost(rows: Sequence[Row]) -> Plot:
    placed = [
        (row, row["cost"], row["speedup"]) for row in rows if row["cost"] is not None and not row["lossy"]
    ]
    best = [
        {"cost": row["cost"], "speedup": row["speedup"], "draft": row["draft"]} for row in frontier(placed)
    ]
    x = quantity("cost", COST)
    line = {
        "data": {"values": best},
        "mark": {"type": "line", "strokeDash": [6, 3], "interpolate": "step-after", "opacity": 0.8},
        "encoding": {"x": x, "y": {"field": "speedup", **_SPEEDUP}},
    }
    names = ", ".join(entry["draft"] for entry in best) or "none"
    return Plot(
        "cost",
        "Speedup against draft cost",
        f"Each draft's speedup with its interval over the cost of one of its forwards. The dashed line is the Pareto "
        f"frontier: no lossless draft is both cheaper and faster. On the frontier: {names}.",
        _spec([no_gain(_SPEEDUP), line, *_points(x)], {"filter": "isValid(datum.cost)"}),
    )


def _by_acceptance(rows: Sequence[Row]) -> Plot:
    most = max(row["acceptance"] or 1.0 for row in rows)
    top = max(row["high"] or row["speedup"] for row in rows)
    reach = round(1.05 * most, 3)
    lines = [
        {"cost": f"{cost:g}", "acceptance": at, "speedup": at / (1 + cost), "end": end}
        for cost in _STEP_COSTS
        if 1.0 / (1 + cost) <= 1.08 * top
        for at, end in ((1.0, False), (min(reach, 1.08 * top * (1 + cost)), True))
    ]
    x = quantity("acceptance", "acceptance length (tokens per step)", scale=SPREAD | {"nice": False})
    y = {"field": "speedup", **_SPEEDUP}
    equal = {
        "data": {"values": lines},
        "mark": {"type": "line", "opacity": 0.6, "strokeWidth": 1, "strokeDash": [4, 3]},
        "encoding": {"x": x, "y": y, "detail": {"field": "cost"}},
    }
    labels = {
        "data": {"values": [line for line in lines if line["end"]]},
        "mark": {"type": "text", "align": "right", "dx": -2, "dy": -7, "fontSize": 10, "opacity": 0.8},
        "encoding": {"x": x, "y": y, "text": {"field": "cost"}},
    }
    return Plot(
        "acceptance",
        "Acceptance length against speedup",
        "Results on one dashed line pay equally much per step beyond one forward of the target: for drafting, longer "
        "verification and the loop. The label is that cost in target forwards. On the uppermost line a step costs one "
        "target forward. Acceptance length is over all steps and speedup a mean over tasks, so a draft that gains "
        "unevenly may lie slightly above it.",
        _spec([equal, labels, *_points(x)], {"filter": "isValid(datum.acceptance)"}),
    )


def _by_size(target_parameters: int) -> Plot:
    x = quantity(
        "share",
        "parameters beside the target's, in parts of the target's",
        scale={"type": "symlog", "constant": 0.02},
        axis={"format": "~%", "values": [0, 0.01, 0.03, 0.1, 0.3, 1]},
    )
    return Plot(
        SIZE,
        "Speedup by proposer and size",
        "Each draft's speedup over its size. The colour says what proposes, the shape whether its recipe trains it.",
        _spec(
            [no_gain(_SPEEDUP), *_points(x)],
            {"filter": "isValid(datum.parameters)"},
            {"calculate": f"datum.parameters / {max(target_parameters, 1)}", "as": "share"},
        ),
    )


def _by_position(rows: Sequence[Row]) -> Plot:
    shown = [readable(row["draft"]) for row in rows if row["positions"]][:_MAX_LINES]
    spec = _spec(
        [
            {
                "mark": {"type": "line", "point": {"filled": True, "size": 50}, "strokeWidth": 2},
                "encoding": {
                    "x": {
                        "field": "position",
                        "type": "ordinal",
                        "title": "position",
                        "axis": {"labelAngle": 0},
                    },
                    "y": quantity(
                        "positions",
                        "accepted, given those before were",
                        axis={"format": ".0%"},
                        scale={"domain": [0, 1]},
                    ),
                    "color": {"field": "draft", "type": "nominal", "title": None, "sort": shown},
                    "tooltip": [
                        {"field": "draft"},
                        {"field": "position"},
                        {"field": "positions", "title": "accepted", "format": ".1%"},
                    ],
                },
            }
        ],
        {"filter": {"field": "draft", "oneOf": shown}},
        {"flatten": ["positions"]},
        {"window": [{"op": "row_number", "as": "position"}], "groupby": ["draft"]},
        {"filter": "isValid(datum.positions)"},
    )
    return Plot(
        "position",
        "Acceptance by position",
        f"The share of tokens proposed at each position that the target accepted, given that it accepted those before, "
        f"for the {len(shown)} leading drafts.",
        spec,
    )


def _by_length(rows: Sequence[Row]) -> tuple[Plot, Plot]:
    """Speedup and acceptance length over the tokens of the prompt, a line for each draft."""
    drawn = [row for row in rows if row["lengths"]][:_MAX_LINES]
    shown = [readable(row["draft"]) for row in drawn]
    x = quantity(
        "place",
        "context length (tokens of the prompt)",
        scale={"type": "log", "base": 2, "nice": False, "padding": 24},
        axis={
            "values": sorted({cell["tokens"] for row in drawn for cell in row["lengths"]}),
            "format": ",d",
            "grid": False,
            "labelOverlap": True,
        },
    )
    speedup = quantity("length.speedup", "speedup", scale=SPREAD)
    acceptance = quantity("length.acceptance", "acceptance length (tokens per step)", scale=SPREAD)
    draft = {"field": "draft", "type": "nominal", "title": None, "scale": {"domain": shown}}
    intervals = {
        "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.55},
        "encoding": {
            "x": x,
            "y": speedup | {"field": "length.low"},
            "y2": {"field": "length.high"},
            "color": draft,
        },
    }
    tooltip = [
        {"field": "draft"},
        {"field": "length.tokens", "title": "tokens of the prompt", "format": ",d"},
        {"field": "length.speedup", "title": "speedup", "format": ".2f"},
        {"field": "length.low", "title": "95 % from", "format": ".3f"},
        {"field": "length.high", "title": "to", "format": ".3f"},
        {"field": "length.acceptance", "title": "acceptance length", "format": ".2f"},
    ]

    def lines(y: dict[str, Any]) -> list[dict[str, Any]]:
        placed = {"x": x, "y": y, "color": draft}
        return [
            {"mark": {"type": "line", "strokeWidth": 2}, "encoding": placed},
            {"mark": POINTS, "encoding": {**placed, "shape": draft, "tooltip": tooltip}},
        ]

    beside = f"pow(2, {_DODGE} * (datum.place - {(len(shown) + 1) / 2}))"
    transforms = (
        {"filter": {"field": "draft", "oneOf": shown}},
        {"flatten": ["lengths"], "as": ["length"]},
        {"window": [{"op": "dense_rank", "as": "place"}], "sort": [{"field": "draft"}]},
        {"calculate": f"datum.length.tokens * {beside}", "as": "place"},
    )
    told = "; ".join(
        f"{row['draft']}: "
        + ", ".join(
            f"{cell['speedup']:.2f}× at {cell['tokens']:,}" for cell in row["lengths"] if cell["speedup"]
        )
        for row in drawn
    )
    return (
        Plot(
            "length-speedup",
            "Speedup against context length",
            "The speedup with its 95 % interval over the tokens of the prompt, for the leading drafts. Every task has prompts of "
            f"each length, so that lines show what the length does. {told}.",
            _spec([no_gain(speedup), intervals, *lines(speedup)], *transforms),
        ),
        Plot(
            "length-acceptance",
            "Acceptance against context length",
            "The acceptance length over the tokens of the prompt, for the same drafts.",
            _spec(lines(acceptance), *transforms),
        ),
    )
