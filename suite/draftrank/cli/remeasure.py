"""`draftrank remeasure`: do the published figures still hold here?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from draftrank.cli import options
from draftrank.cli.output import ConsoleProgress, out, print_json


def remeasure(
    target: options.TargetOption = None,
    suite: options.SuiteFilter = None,
    drafts: Annotated[int, typer.Option(help="Leading drafts of each board.", min=1, max=20)] = 2,
    backend: options.BackendFilter = "auto",
    dtype: options.DtypeFilter = "auto",
    device: options.DeviceOption = "auto",
    to: options.BundlesOption = None,
    json: options.JsonOption = False,
    workspace: options.WorkspaceOption = None,
) -> None:
    """Measure the leading drafts of this machine's published boards again. Exit code 1 means that a figure
    moved.

    [bold]Example:[/bold] draftrank remeasure --suite quick
    """
    from draftrank.board.formats import span, times
    from draftrank.board.ranking import build_boards
    from draftrank.board.reproduce import named_suite
    from draftrank.catalog.backend import Asked, is_backend
    from draftrank.catalog.workspace import Workspace
    from draftrank.cli.results import require_known
    from draftrank.engine.backends.choice import device_for
    from draftrank.measure.machine.fingerprint import read_machine
    from draftrank.store.bundle import load_results, publish
    from draftrank.store.store import Store
    from draftrank.workflows.remeasure import remeasure as remeasure_job

    opened = Workspace.open(workspace)
    chosen = device_for(Asked(device=device))
    here = read_machine(chosen)
    boards = [
        board
        for board in build_boards(load_results(None, opened.published))
        if (board.key.machine_class, board.key.device) == (here.machine_class, chosen)
        and target in (None, board.key.target)
        and not board.key.archived  # what another minor version measured is not comparable
        and is_backend(board.key.backend)  # one that has retired cannot measure again
        and suite in (None, board.key.suite)
        and backend in ("auto", board.key.backend)
        and dtype in ("auto", board.key.dtype)
    ]
    told, files = [], []
    with Store.open(opened.store_url) as store:
        for board in boards:
            with ConsoleProgress() as progress:
                found = remeasure_job(opened, board, store, most=drafts, progress=progress)
            if found is None:
                continue
            for one in found.drafts:
                style, word = ("bold yellow", "moved") if one.moved else ("green", "holds")
                key = board.key
                name = f"{key.target} {one.draft} ({key.suite}, {key.backend_and_dtype}, {key.mode})"
                ends = one.ratio.interval
                ratio = f" (ratio {span((ends.low, ends.high))})" if ends else ""
                figures = f"{times(one.published)} published, {times(one.now)} now{ratio}"
                out.print(Text.assemble((f"{word:6}", style), f"{name}: {figures}"))
                told.append(
                    {"board": board.key.id, "target": board.key.target, "moved": one.moved, **asdict(one)}
                )
            if to is not None:
                files += publish(found.result, to)
    if not told:
        require_known(opened, target=target, suite=suite and named_suite(suite))
        out.print(
            f"nothing was measured again: no published board of {here.machine_class} that is asked for has a leader whose "
            "recipe, target and prompts are still declared alike"
        )
    if json:
        print_json({"drafts": told, "files": [str(path) for path in files]})
    if any(one["moved"] for one in told):
        raise typer.Exit(1)
