"""`draftrank search`: from a target alone to the best draft found for it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from draftrank.cli import options
from draftrank.cli.output import ConsoleProgress, new_table, out, print_json, print_table

if TYPE_CHECKING:
    from draftrank.board.site.search_page import TriedModel
    from draftrank.workflows.search.search import Found


def search(
    target: options.NamedTargetOption = None,
    suite: Annotated[str, typer.Option("--suite", "-s", help="Suite that decides.", metavar="ID")] = "quick",
    budget: Annotated[str, typer.Option(help="Time for all of it, e.g. 30m, 2h.", metavar="TIME")] = "2h",
    backend: options.BackendOption = "auto",
    dtype: options.DtypeOption = "auto",
    device: options.DeviceOption = "auto",
    seed: Annotated[
        int,
        typer.Option(
            help="Seed of the choices and of arm order.", min=0, max=options.MAX_SEED, metavar="INTEGER"
        ),
    ] = 0,
    folder: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for the recipe and the report.", metavar="DIR")
    ] = Path("search"),
    json: options.JsonOption = False,
    workspace: options.WorkspaceOption = None,
) -> None:
    """Search the best draft for a target: train models, stop those with low predicted speedups, measure the best.

    An interrupted search resumes.

    [bold]Example:[/bold] draftrank search --target smollm2-135m-instruct --budget 2h
    """
    from draftrank.board.as_json import board_document
    from draftrank.board.ranking import build_boards
    from draftrank.board.recipe_text import recipe_yaml
    from draftrank.board.site.search_page import render_search
    from draftrank.catalog.workspace import Workspace
    from draftrank.cli.tables import print_board
    from draftrank.jobs.session import RunRequest, default_target
    from draftrank.store.store import Store
    from draftrank.workflows.search.search import search as search_job

    opened = Workspace.open(workspace)
    request = RunRequest(
        target=target or default_target(opened),
        suite=suite,
        backend=backend,
        dtype=dtype,
        device=device,
        seed=seed,
    )
    budget_s = options.parse_duration(budget, "--budget")
    with Store.open(opened.store_url) as store, ConsoleProgress() as progress:
        found = search_job(opened, request, budget_s, store, progress)
    tried = _tried(found)
    _print_tried(tried)
    boards = build_boards([found.session])
    for board in boards:
        print_board(board)
    best = found.best
    text = recipe_yaml(best.model_dump(mode="json", exclude_none=True)) if best else ""
    render_search(tried, boards[0], best.id if best else None, text, folder)
    if best is not None:
        file = folder / f"{best.id}.yaml"
        file.write_text(text, "utf-8")
        out.print(
            f"the fastest: {best.id}, written to {file}; to keep it, put it into drafts/{request.target}/"
        )
    out.print(f"what was tried: {folder / 'index.html'}")
    if json:
        print_json(
            {
                "best": best.id if best else None,
                "recipe": best.model_dump(mode="json", exclude_none=True) if best else None,
                "tried": [asdict(one) for one in tried],
                "session": found.session.session.id,
            }
            | board_document(boards)
        )
    if best is None:
        raise typer.Exit(1)


def _tried(found: Found) -> list[TriedModel]:
    from draftrank.board.site.search_page import TriedModel
    from draftrank.workflows.search.choice import RUNGS, passes_of

    return [
        TriedModel(
            name=one.choice.id,
            state=one.note or ("trained to the end" if one.rung >= RUNGS else "given up"),
            passes=passes_of(one.choice, one.rung),
            agreement=one.agreement,
            cost=one.cost,
            predicted_speedup=one.prediction.speedup if one.prediction else None,
            k=one.prediction.k if one.prediction else None,
            seconds=one.seconds,
        )
        for one in found.tried
    ]


def _print_tried(tried: list[TriedModel]) -> None:
    from draftrank.board.formats import decimal, duration, percent, times

    names = ("model", "passes", "agreement", "cost", "predicted", "k", "time", "state")
    table = new_table(*names, left=("model", "state"))
    for one in sorted(tried, key=lambda one: -(one.predicted_speedup or 0.0)):
        table.add_row(
            one.name,
            str(one.passes),
            percent(one.agreement),
            decimal(one.cost),
            times(one.predicted_speedup),
            str(one.k or "–"),
            duration(one.seconds),
            one.state,
        )
    print_table(table)
