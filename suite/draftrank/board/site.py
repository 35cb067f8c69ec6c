"""Renders boards as a static site: no scripts, nothing loaded from elsewhere, readable from `file://`.

Everything that comes from records is text to the templates: autoescape is on for all of them, and no
link is built from a record except to pages with names from `safe_name`. Equal boards give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from draftrank.board import charts
from draftrank.board.as_json import board_document
from draftrank.board.formats import FILTERS
from draftrank.board.recipe_text import recipe_sentence, recipe_yaml
from draftrank.board.rows import Board, BoardRow, TaskCell
from draftrank.board.site_files import safe_name, site_source, write_site
from draftrank.board.words import WORDS
from draftrank.measure.gates.verdict import GATES

_CHART_WIDTH = 320.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One draft on one board, as its page shows it."""

    board: Board
    row: BoardRow
    scale: charts.Scale
    histogram: tuple[charts.Bar, ...]
    by_position: tuple[charts.Bar, ...]
    shares: tuple[charts.Part, ...]
    command: str


def render_site(boards: Sequence[Board], out: Path) -> tuple[Path, ...]:
    """Writes the whole site into `out` and returns its files, `index.html` last.

    Raises:
        InvalidInputError: `out` cannot take the site (see `write_site`).
    """
    return write_site(render_pages(boards), out)


def render_pages(boards: Sequence[Board]) -> dict[str, bytes]:
    """Every file of the site by its relative path."""
    source = site_source()
    environment = Environment(
        loader=FileSystemLoader(source / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(FILTERS)
    environment.globals.update(draft_page=draft_page, chart_width=charts.WIDTH, bars_width=_CHART_WIDTH)

    def page(template: str, depth: int, **values: Any) -> bytes:
        text = environment.get_template(template).render(root="../" * depth, **values)
        # A record may hold half a surrogate pair, which no file can: it becomes a question mark.
        return text.encode("utf-8", "replace")

    pages = {
        "index.html": page("index.html.j2", 0, boards=[(board, _scale(board)) for board in boards]),
        "methodology.html": page("methodology.html.j2", 0, words=WORDS, gates=GATES),
        "board.json": (json.dumps(board_document(boards), indent=1, allow_nan=False) + "\n").encode(),
    }
    for (target, draft), entries in _entries(boards).items():
        newest = max(entries, key=lambda entry: (entry.row.measured_at, entry.row.session))
        build = newest.row.build or next((entry.row.build for entry in entries if entry.row.build), None)
        pages[draft_page(target, draft)] = page(
            "draft.html.j2",
            draft_page(target, draft).count("/"),
            target=target,
            newest=newest,
            entries=entries,
            build=build,
            sentence=recipe_sentence(build) if build else "",
            recipe=recipe_yaml(build.recipe) if build else "",
        )
    for file in sorted((source / "static").iterdir()):
        pages[f"static/{file.name}"] = file.read_bytes()
    return pages


def draft_page(target: str, draft: str) -> str:
    """Relative path of a draft's page."""
    return f"drafts/{safe_name(target)}/{safe_name(draft)}/index.html"


def _scale(board: Board) -> charts.Scale:
    noise = board.newest.noise
    reference = (noise.interval.low, noise.interval.high) if noise and noise.interval else None
    return charts.Scale.over([reference, *(row.ci for row in board.rows)])


def _entries(boards: Sequence[Board]) -> dict[tuple[str, str], list[Entry]]:
    """A draft's results on all boards, by target and draft."""
    entries: dict[tuple[str, str], list[Entry]] = {}
    for board in boards:
        for row in board.rows:
            entries.setdefault((board.key.target, row.draft), []).append(_entry(board, row))
    return dict(sorted(entries.items()))


def _entry(board: Board, row: BoardRow) -> Entry:
    acceptance, timing = row.summary.acceptance, row.summary.timing
    shares = [
        (name, share)
        for name, share in (
            ("proposing", timing.propose_share),
            ("verifying", timing.verify_share),
            ("other", timing.other_share),
        )
        if share is not None
    ]
    positions = acceptance.by_position
    return Entry(
        board,
        row,
        charts.Scale.over([row.ci, *(_near(cell) for cell in row.per_task.values())]),
        charts.bars(acceptance.histogram, _numbers(0, len(acceptance.histogram)), _CHART_WIDTH),
        charts.bars([share or 0.0 for share in positions], _numbers(1, len(positions)), _CHART_WIDTH, 1.0),
        charts.stacked(shares),
        row.reproduce,
    )


def _near(cell: TaskCell) -> tuple[float, float] | None:
    """A task's interval, as far as the chart's axis follows it: two prompts alone may leave it endless."""
    if cell.ci is None or cell.speedup is None:
        return None
    return max(cell.ci[0], cell.speedup / 2), min(cell.ci[1], cell.speedup * 2)


def _numbers(first: int, how_many: int) -> list[str]:
    return [str(number) for number in range(first, first + how_many)]
