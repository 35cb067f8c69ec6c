"""`draftrank site`: render the static pages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from draftrank.cli.options import JsonOption, WorkspaceOption
from draftrank.cli.output import out, print_json


def site(
    out_dir: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write; replaced when it is a site.", metavar="DIR")
    ] = Path("site"),
    published: Annotated[
        bool, typer.Option("--published", help="Only the published bundles, not the local store.")
    ] = False,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Render the leaderboard as static HTML that opens from the disk.

    [bold]Example:[/bold] draftrank site --out site
    """
    from draftrank.board.ranking import build_boards
    from draftrank.board.site import render_site
    from draftrank.catalog.workspace import Workspace
    from draftrank.cli.results import read_results

    results = read_results(Workspace.open(workspace), local=not published)
    render_site(build_boards(results), out_dir)
    index = (out_dir / "index.html").resolve()
    out.print(f"the site is rendered: {index.as_uri()}")
    if json:
        print_json({"index": str(index), "sessions": len(results)})
