"""The page of a search: what was tried, what was measured, and the recipe it ended with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from draftrank.board.rows import Board
from draftrank.board.site.drawing import draw
from draftrank.board.site.files import site_source, write_site
from draftrank.board.site.plots import COST, HEIGHT, SPREAD, WIDTH, Plot, quantity
from draftrank.board.site.render import encoded, environment


@dataclass(frozen=True, slots=True)
class TriedModel:
    """One model of a search."""

    name: str
    state: str
    """How far it came: `trained to the end`, `given up`, or why it could not be built."""
    passes: int
    """Over the text."""
    agreement: float | None
    """Share of tokens on text kept aside that it and the target agree on."""
    cost: float | None
    """One of its forwards in forwards of the target."""
    predicted_speedup: float | None
    """Predicted speedup at the best k."""
    k: int | None
    seconds: float
    """To build it."""


def render_search(
    tried: Sequence[TriedModel], board: Board, best: str | None, recipe: str, out: Path
) -> tuple[Path, ...]:
    """Writes the page of a search into a folder of its own and returns its files, `index.html` last.

    `tried` has every model in the order they were tried, `board` the finalists as measured; `best` is the id of the
    one that the search ends with, and `recipe` its recipe as YAML, empty without one.

    Raises:
        InvalidInputError: `out` cannot take the page (see `write_site`).
    """
    source = site_source()
    plot = _trade_off(tried)
    page = environment(source).get_template("search.html.j2")
    text = page.render(tried=tried, board=board, best=best, recipe=recipe, plot=plot)
    files = {
        "index.html": encoded(text),
        "static/site.css": (source / "static" / "site.css").read_bytes(),
        "static/theme.js": (source / "static" / "theme.js").read_bytes(),
    }
    if plot is not None:
        files["light.svg"], files["dark.svg"] = draw(plot.spec, "light"), draw(plot.spec, "dark")
    return write_site(files, out)


def _trade_off(tried: Sequence[TriedModel]) -> Plot | None:
    rows = [
        {name: getattr(one, name) for name in ("name", "state", "agreement", "cost", "predicted_speedup")}
        for one in tried
        if one.predicted_speedup is not None
    ]
    if not rows:
        return None
    place = {
        "x": quantity("cost", COST),
        "y": quantity("agreement", "agreement on held-out text", axis={"format": "%"}, scale=SPREAD),
    }
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": WIDTH,
        "height": HEIGHT,
        "data": {"values": rows},
        "layer": [
            {
                "mark": {"type": "point", "filled": True, "opacity": 0.9},
                "encoding": {
                    **place,
                    "color": {"field": "state", "type": "nominal", "title": None},
                    "size": {"field": "predicted_speedup", "type": "quantitative", "legend": None},
                },
            },
            {
                "mark": {"type": "text", "dy": -12, "fontSize": 10},
                "encoding": {
                    **place,
                    "text": {"field": "predicted_speedup", "type": "quantitative", "format": ".2f"},
                },
            },
        ],
    }
    return Plot(
        "trade-off",
        "Agreement against draft cost",
        "Each point is a trained model, labelled with its predicted speedup. Higher points agree more often with the "
        "target; points further left are cheaper.",
        spec,
    )
