"""`draftrank status`: how far a sweep is."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from draftrank.cli.options import JsonOption, WorkspaceOption
from draftrank.cli.output import out, print_json

_STYLES = {
    "done": "green",
    "running": "bold",
    "waiting": "dim",
    "failed": "bold red",
    "skipped": "yellow",
    "cancelled": "yellow",
}


def status(
    sweep: Annotated[
        str | None,
        typer.Argument(help="Name of the sweep's folder. Default: the newest.", show_default=False),
    ] = None,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Show each job of a sweep, running or ended, with its time, its attempts and the reason if it failed.

    [bold]Example:[/bold] draftrank status
    """
    from draftrank.catalog.workspace import Workspace
    from draftrank.errors import InvalidInputError
    from draftrank.jobs.ledger import Ledger, sweeps

    opened = Workspace.open(workspace)
    found = [path for path in sweeps(opened.state) if sweep in (None, path.name)]
    if not found:
        raise InvalidInputError.single(
            f"there is no sweep {sweep or ''}".rstrip(), fix="start one with `draftrank sweep`"
        )
    ledger = Ledger.read(found[-1])
    for job in ledger.jobs:
        facts = ledger.facts[job.id]
        words = f"{facts.state:9}", _STYLES[facts.state]
        attempts = f", attempt {facts.attempts}" if facts.attempts > 1 else ""
        reason = f": {facts.reason}" if facts.reason else ""
        time = f" {facts.seconds:.0f} s" if facts.seconds else ""
        out.print(Text.assemble(words, f" {job.id}{time}{attempts}{reason}"))
    runs = ledger.runs
    out.print(f"{opened.display(ledger.folder)}: " + ("running" if runs else "ended"))
    if json:
        jobs = [{"id": job.id} | asdict(ledger.facts[job.id]) for job in ledger.jobs]
        print_json({"sweep": ledger.folder.name, "running": runs, "jobs": jobs})
