"""`draftrank import`: result bundles into the local store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from draftrank.cli.options import JsonOption, WorkspaceOption
from draftrank.cli.output import out, print_json


def import_(
    bundles: Annotated[list[Path], typer.Argument(help="Bundle files, or folders that hold some.")],
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Read result bundles into the local store; what it has already stays as it is.

    [bold]Example:[/bold] draftrank import leaderboard/results
    """
    from draftrank.catalog.workspace import Workspace
    from draftrank.store.bundle import import_bundle
    from draftrank.store.store import Store

    files = [file for path in bundles for file in (sorted(path.rglob("*.json")) if path.is_dir() else [path])]
    opened = Workspace.open(workspace)
    with Store.open(opened.store_url) as store:
        for file in files:
            import_bundle(file, store)
    out.print(f"{len(files)} bundles imported")
    if json:
        print_json({"files": [str(file) for file in files]})
