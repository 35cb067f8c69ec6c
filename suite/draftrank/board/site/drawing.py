"""Draws specifications to SVG, and hands out the scripts that make them interactive. Both come from vl-convert,
which needs neither a browser nor the network."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import version
from typing import Any

from draftrank.board.site.plots import Theme, config_of
from draftrank.catalog.base import sha256_of_json
from draftrank.store.derived import Derived

VEGA = "static/vega.js"
"""Where the site keeps the chart library; its licences lie beside it."""
_PACKAGE = "vl-convert-python"
_NOTICE = "/* Vega, Vega-Lite, Vega-Embed and what they use, unchanged; licences: vega-licences.txt */\n"


def draw(spec: dict[str, Any], theme: Theme) -> bytes:
    """A whole Vega-Lite specification as SVG on a transparent background; equal ones give equal bytes."""
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg(spec, config=config_of(theme))
    return svg.encode()


def kept_drawing(derived: Derived, name: str, spec: dict[str, Any], theme: Theme) -> bytes:
    """As `draw`; what was drawn under this name before is taken again when the specification is the same."""
    source = sha256_of_json([spec, config_of(theme), version(_PACKAGE)])
    svg = derived.find("drawing", name, source)
    if svg is None:
        svg = draw(spec, theme)
        derived.keep("drawing", {name: (source, svg)})
    return svg


def kept_library(derived: Derived) -> bytes:
    """As `chart_library`, which takes seconds to put the scripts together."""
    script = derived.find("library", VEGA, version(_PACKAGE))
    if script is None:
        script = chart_library()
        derived.keep("library", {VEGA: (version(_PACKAGE), script)})
    return script


@lru_cache(maxsize=1)
def chart_library() -> bytes:
    """The scripts, as the body of a function: of all the bundle's names it leaves only the three it exports."""
    import vl_convert

    return f"{_NOTICE}(function () {{\n{vl_convert.javascript_bundle()}\n}})();\n".encode()
