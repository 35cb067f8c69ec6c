"""`draftrank verify`: run a sample of published results again and compare."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from draftrank.cli.options import JsonOption, WorkspaceOption
from draftrank.cli.output import ConsoleProgress, out, print_json

if TYPE_CHECKING:
    from draftrank.workflows.verify import Verification

_STYLES = {"holds": "green", "fails": "bold red", "skipped": "yellow"}


def verify(
    bundle: Annotated[list[Path], typer.Argument(help="Result bundles.", show_default=False)],
    prompts: Annotated[
        int | None,
        typer.Option(
            help="Prompts of each task to measure again. Default: as many as take about two minutes on a machine of "
            "the same class, 2 on others.",
            min=1,
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the sample. Default: random, and printed.", min=0)
    ] = None,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Measure a sample of published results again. Exit code 1 means that one does not hold.

    Hashes of target, recipe, tasks and weights are compared first, then outputs and accept histograms. On a
    machine of the same class, the time of a step and speedups are compared too.

    [bold]Example:[/bold] draftrank verify leaderboard/results/smollm2-135m-instruct/*/*.json
    """
    from draftrank.catalog.workspace import Workspace
    from draftrank.errors import InvalidInputError, Problem
    from draftrank.workflows.verify import verify as verify_job

    opened = Workspace.open(workspace)
    if missing := [path for path in bundle if not path.is_file()]:
        fix = "name a bundle's .json file"
        raise InvalidInputError(Problem("is not a file", str(path), fix=fix) for path in missing)
    found = []
    with ConsoleProgress() as progress:
        for path in bundle:
            for one in verify_job(opened, path, prompts=prompts, seed=seed, progress=progress):
                found.append(one)
                _print(one)
    if json:
        bundles = [asdict(one) | {"holds": one.holds} for one in found]
        print_json({"holds": all(one.holds for one in found), "bundles": bundles})
    if not all(one.holds for one in found):
        raise typer.Exit(1)


def _print(found: Verification) -> None:
    name = f"{found.draft} of session {found.session}" if found.session else "unreadable"
    out.print(Text.assemble(("\n" + found.bundle, "bold"), f": {name}"))
    for check in found.checks:
        out.print(
            Text.assemble((f"{check.status:8}", _STYLES[check.status]), f"{check.name}: {check.detail}")
        )
    for note in found.notes:
        out.print(Text(f"note: {note}", "dim"))
    if found.prompts:
        out.print(Text(f"run again with seed {found.seed}: {', '.join(found.prompts)}", "dim"))
    verdict = ("it holds", "bold green") if found.holds else ("it does not hold", "bold red")
    out.print(Text.assemble(verdict))
