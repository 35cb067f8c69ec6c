"""Every file of the site, from boards and, where they are at hand, the declarations behind them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from draftrank.board.as_json import board_document, serving_document
from draftrank.board.concurrency import effect_of_concurrency, served_techniques
from draftrank.board.earlier import EARLIER, mark_earlier
from draftrank.board.effects import effects_of
from draftrank.board.formats import FILTERS
from draftrank.board.order import in_order, places_of, weight
from draftrank.board.parity import Proof, parity_document, proofs_of
from draftrank.board.recipe_text import draft_of, recipe_sentence, recipe_yaml, steps_of
from draftrank.board.rows import Board, words_of
from draftrank.board.serving import ServingBoard
from draftrank.board.site import addresses, charts
from draftrank.board.site.answers import answers_of
from draftrank.board.site.board_view import BoardView, heaviest_of_each, views_of
from draftrank.board.site.csv_table import csv_table, serving_table
from draftrank.board.site.draft_view import BARS_WIDTH, Entry, entry_of
from draftrank.board.site.drawing import VEGA, kept_drawing, kept_library
from draftrank.board.site.files import site_source, write_site
from draftrank.board.site.index_schema import index_schema
from draftrank.board.site.methodology import methodology
from draftrank.board.site.news import news_of
from draftrank.board.site.overviews import machine_views, target_views, task_views
from draftrank.board.site.plots import SIZE, THEMES
from draftrank.board.site.serving_view import (
    SIGNS,
    ServedEntry,
    ServingView,
    served_entries,
    serving_views,
    tone,
)
from draftrank.catalog.target import Target
from draftrank.catalog.task import Task
from draftrank.measure.parity import Parity, report_of
from draftrank.store.derived import Derived
from draftrank.version import __version__, minor_of

ARCHIVE = "archive.html"
"""The page of the archived boards; there only if there are any."""
_NEVER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""Characters that XML forbids, even escaped."""


@dataclass(frozen=True, slots=True)
class Declarations:
    """What a workspace says of targets and tasks, by id; pages do without what is missing."""

    targets: Mapping[str, Target] = field(default_factory=dict)
    tasks: Mapping[str, Task] = field(default_factory=dict)

    @classmethod
    def of(cls, targets: Iterable[Target], tasks: Iterable[Task]) -> Declarations:
        """From the declarations themselves."""
        return cls({target.id: target for target in targets}, {task.id: task for task in tasks})


def render_site(
    boards: Sequence[Board],
    out: Path,
    *,
    declared: Declarations | None = None,
    url: str = "",
    downloads: Mapping[str, bytes] | None = None,
    derived: Derived | None = None,
    parities: Sequence[Parity] = (),
    servings: Sequence[ServingBoard] = (),
) -> tuple[Path, ...]:
    """Writes the whole site into `out` and returns its files, `index.html` last.

    Args:
        boards: what is shown.
        out: the folder.
        declared: titles, licences and descriptions.
        url: where the site will be served, with a slash at its end; feeds and badges then link to it.
        downloads: further files by relative path, e.g. the database.
        derived: what was drawn before.
        parities: drafts in other engines.
        servings: boards of servers.

    Raises:
        InvalidInputError: `out` cannot take the site (see `write_site`).
    """
    pages = render_pages(
        boards,
        declared=declared,
        url=url,
        downloads=tuple(downloads or ()),
        derived=derived,
        parities=parities,
        servings=servings,
    )
    return write_site(pages | dict(downloads or {}), out)


def render_pages(
    boards: Sequence[Board],
    *,
    declared: Declarations | None = None,
    url: str = "",
    downloads: Sequence[str] = (),
    plots: bool = True,
    derived: Derived | None = None,
    parities: Sequence[Parity] = (),
    servings: Sequence[ServingBoard] = (),
) -> dict[str, bytes]:
    """Every file of the site by its relative path.

    `downloads` are the names of files that others add; `plots` says whether to draw plots, which takes most of the time. For
    the others see `render_site`.
    """
    declared, derived = declared or Declarations(), derived or Derived(None)
    source = site_source()
    boards, servings = mark_earlier(in_order(boards), servings)
    current = [board for board in boards if not board.key.archived]
    archived = [board for board in boards if board.key.archived]
    leading = current or archived
    known = _entries(boards, servings)
    with_page = frozenset(board.key.target for board in boards)
    render = _Renderer(environment(source, tuple(downloads), serving=bool(servings), targets=with_page))
    views = views_of(boards, plots=plots)
    served = serving_views(servings, plots=plots)
    files = render.files

    def home(address: str, template: str, shown: Sequence[Board], answering: Sequence[Board]) -> None:
        ids = {board.key.id for board in shown}
        own = [view for view in views if view.board.key.id in ids]
        lead = max((place.lead for place in places_of(shown)), key=weight, default=None)
        view = next((view for view in own if view.board is lead), None)
        answers = answers_of(places_of(answering), declared.targets)
        render.page(address, template, answers=answers, views=own, view=view, archive=archived, served=served)

    # A machine class that this version has not measured is answered by an archived board, which says so.
    home("index.html", "home.html.j2", leading, boards)
    if archived:
        home(ARCHIVE, "archive.html.j2", archived, archived)
    for view in views:
        render.page(view.address, "board.html.j2", view=view)
    for shown in served:
        render.page(shown.address, "serving_board.html.j2", view=shown)
    drawn: list[BoardView | ServingView] = [*views, *served]
    with_plots = [one for one in drawn if one.plots]
    for one in with_plots:
        for plot in one.plots:
            for theme in THEMES:
                address = addresses.plot_file(one.address, plot.id, theme)
                files[address] = kept_drawing(derived, address, one.drawn(plot), theme)
    if served:
        render.page("serving/index.html", "serving.html.j2", served=served)
    for (target, draft), entries in known.items():
        proofs = proofs_of(one for one in parities if (one.target, one.draft) == (target, draft))
        in_servers = served_entries(servings, target, draft)
        _draft(render, target, draft, entries, declared, proofs, in_servers)
    for seen in target_views(boards, servings, declared.targets):
        own = [one for one in served if one.board.key.target == seen.id]
        render.page(addresses.target_page(seen.id), "target.html.j2", view=seen, served=own)
    for task in task_views(boards, declared.tasks):
        render.page(addresses.task_page(task.id), "task.html.j2", view=task)
    for machine in machine_views(boards):
        own = [one for one in served if one.board.key.machine_class == machine.id]
        render.page(addresses.machine_page(machine.id), "machine.html.j2", view=machine, served=own)
    sizes = heaviest_of_each([view for view in views if view.board in leading], SIZE)
    effects = served_techniques([board for board in servings if not board.key.archived] or servings)
    study = {
        "boards": leading,
        "sizes": sizes,
        "techniques": effects_of(leading),
        "in_servers": effects,
        "finding": effect_of_concurrency(effects),
    }
    render.page("study.html", "study.html.j2", **study)
    render.page("methodology.html", "methodology.html.j2", content=methodology(source))
    render.page("submit.html", "submit.html.j2")
    render.page("data.html", "data.html.j2", boards=boards)
    news = news_of(boards, servings)
    render.page("feed.xml", "feed.xml.j2", news=news, url=url)
    proved = [parity_document(one, report_of(one)) for one in parities]
    files["index.json"] = _json(
        board_document(boards) | {"parities": proved, "servings": serving_document(servings)}
    )
    files["index.schema.json"] = _json(index_schema())
    files["results.csv"] = csv_table(boards).encode("utf-8", "replace")
    if served:
        files["serving.csv"] = serving_table(servings).encode("utf-8", "replace")
    for file in sorted((source / "static").iterdir()):
        files[f"static/{file.name}"] = file.read_bytes()
    if with_plots:
        files[VEGA] = kept_library(derived)
    return files


class _Renderer:
    """Fills templates, each with the way back to the site's root."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.files: dict[str, bytes] = {}

    def page(self, address: str, template: str, **values: Any) -> None:
        """Renders one page to its address."""
        root = "../" * address.count("/")
        text = self._environment.get_template(template).render(root=root, address=address, **values)
        self.files[address] = encoded(text)


def encoded(text: str) -> bytes:
    """A page's bytes. A record may hold what no file can: half a surrogate pair becomes a question mark."""
    return _NEVER.sub("\ufffd", text).encode("utf-8", "replace")


@lru_cache(maxsize=16)
def environment(
    source: Path,
    downloads: tuple[str, ...] = (),
    *,
    serving: bool = False,
    targets: frozenset[str] = frozenset(),
) -> Environment:
    """The templates below a folder, and what they may call; `downloads` are names of files that others add, `targets`
    those that have a page. Kept, since compiling the templates takes longer than filling them."""
    made = Environment(
        loader=FileSystemLoader(source / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters.update(FILTERS)
    made.policies["json.dumps_kwargs"] = {"sort_keys": True, "separators": (",", ":")}
    made.globals.update(
        board_page=addresses.board_page,
        draft_page=addresses.draft_page,
        badge=addresses.badge,
        target_page=addresses.target_page,
        task_page=addresses.task_page,
        machine_page=addresses.machine_page,
        plot_file=addresses.plot_file,
        serving_page=addresses.serving_page,
        serving=serving,
        targets=targets,
        tone=tone,
        signs=SIGNS,
        running=minor_of(__version__),
        archive_page=ARCHIVE,
        earlier=EARLIER,
        chart_width=charts.WIDTH,
        bars_width=BARS_WIDTH,
        downloads=downloads,
    )
    return made


def _draft(
    render: _Renderer,
    target: str,
    draft: str,
    entries: Sequence[Entry],
    declared: Declarations,
    proofs: Sequence[Proof],
    in_servers: Sequence[ServedEntry],
) -> None:
    shown: Sequence[Entry | ServedEntry] = entries or in_servers
    newest = max(
        shown, key=lambda entry: (not entry.board.key.archived, entry.row.measured_at, entry.row.session)
    )
    builds = (entry.row.build for entry in (newest, *entries, *in_servers))
    build = next((build for build in builds if build), None)
    kind = draft_of(build.recipe) if build else None
    known = declared.targets.get(target)
    model = getattr(known.source, "repository", None) if known else None
    render.page(
        addresses.draft_page(target, draft),
        "draft.html.j2",
        target=target,
        newest=newest,
        entries=entries,
        build=build,
        sentence=recipe_sentence(build) if build else "",
        description=words_of(newest.board.key.draftrank_version, build, "description"),
        steps=steps_of(build) if build else (),
        recipe=recipe_yaml(build.recipe) if build else "",
        served_only=kind.served_only if kind else False,
        uses=kind.uses(model or f"PATH_OF_{target}", draft, newest.row.k) if kind else (),
        exports=kind.has_weights if kind else False,
        retired={
            entry.row.session
            for entry in entries
            if entry.row.build is not None and draft_of(entry.row.build.recipe) is None
        },
        proofs=proofs,
        in_servers=in_servers,
    )
    if isinstance(newest, Entry):
        render.page(addresses.badge(target, draft), "badge.svg.j2", badge=charts.badge(newest.row))


def _entries(boards: Sequence[Board], servings: Sequence[ServingBoard]) -> dict[tuple[str, str], list[Entry]]:
    """A draft's results on all boards, by target and draft; none of one that only servers have measured."""
    entries: dict[tuple[str, str], list[Entry]] = {
        (board.key.target, row.draft): [] for board in servings for row in board.rows
    }
    for board in boards:
        for row in board.rows:
            entries.setdefault((board.key.target, row.draft), []).append(entry_of(board, row))
    return dict(sorted(entries.items()))


def _json(document: Any) -> bytes:
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()
