"""`draftrank import`: result bundles into the local store."""

from __future__ import annotations

from typing import Annotated

import typer

from draftrank.cli.options import JsonOption, WorkspaceOption
from draftrank.cli.output import err, out, print_json


def import_(
    bundles: Annotated[
        list[str],
        typer.Argument(help="Bundle files, folders with bundles, or addresses that fsspec reaches."),
    ],
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Read result bundles, parity records and serving sessions into the local store; what it has already stays as it is.

    A file that is no good bundle is named and left out; the others are imported.

    [bold]Example:[/bold] draftrank import leaderboard/results
    """
    from draftrank.catalog.workspace import Workspace
    from draftrank.errors import InvalidInputError, Problem
    from draftrank.store.bundle import bundle_files
    from draftrank.store.shared_bundles import bundles_here, import_file
    from draftrank.store.store import Store

    opened = Workspace.open(workspace)
    problems: list[Problem] = []
    imported = 0
    with bundles_here(bundles) as places, Store.open(opened.store_url) as store:
        files = bundle_files(places)
        for file in files:
            try:
                import_file(file, store)
            except InvalidInputError as error:
                problems += error.problems
            else:
                imported += 1
    (err if problems else out).print(f"{imported} bundles imported")
    if problems:
        raise InvalidInputError(problems)
    if json:
        print_json({"files": [str(file) for file in files]})
