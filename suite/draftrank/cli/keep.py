"""`draftrank keep`: a trained draft's weights beside its recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from draftrank.cli.options import DeviceOption, JsonOption, TargetOfDraftOption, WorkspaceOption
from draftrank.cli.output import ConsoleProgress, out, print_json


def keep(
    draft: Annotated[str, typer.Argument(help="The draft's id.", show_default=False)],
    target: TargetOfDraftOption = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Store a trained draft's weights beside its recipe, so that others need not train it.

    [bold]Example:[/bold] draftrank keep eagle3-head --target smollm2-135m-instruct
    """
    from draftrank.board.formats import size
    from draftrank.catalog.workspace import Workspace
    from draftrank.workflows.keep import keep_draft

    opened = Workspace.open(workspace)
    with ConsoleProgress() as progress:
        named = target or opened.find_recipe(draft).target
        described, weights = keep_draft(opened, named, draft, asked=device, progress=progress)
    taken = weights.stat().st_size
    out.print(f"kept: {opened.display(weights)} ({size(taken)}) and {opened.display(described)}")
    if json:
        print_json({"description": str(described), "weights": str(weights), "bytes": taken})
