"""`draftrank build`: make drafts without measuring them."""

from __future__ import annotations

from typing import Annotated

import typer

from draftrank.cli.options import DeviceOption, DraftsOption, JsonOption, WorkspaceOption
from draftrank.cli.output import ConsoleProgress, err, out, print_json


def build(
    target: Annotated[
        str | None, typer.Argument(help="Target whose drafts to build.", show_default=False)
    ] = None,
    draft: DraftsOption = None,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Build drafts into the cache; what is built already is found there.

    [bold]Example:[/bold] draftrank build smollm2-135m-instruct --draft depth4-distilled
    """
    from draftrank.catalog.workspace import Workspace
    from draftrank.jobs.session import build as build_job
    from draftrank.jobs.session import default_target

    opened = Workspace.open(workspace)
    with ConsoleProgress() as progress:
        arms = build_job(
            opened, target or default_target(opened), tuple(draft or ()), device=device, progress=progress
        )
    for arm in arms:
        if arm.build is None:
            err.print(f"{arm.recipe.id}: {arm.failure}")
        elif arm.folder is None:
            out.print(f"{arm.recipe.id}: nothing to build")
        else:
            out.print(
                f"{arm.recipe.id}: {arm.build.parameters / 1e6:.1f} M parameters, "
                f"built in {arm.build.build_s:.0f} s, {arm.folder}"
            )
    if json:
        drafts = [
            {
                "draft": arm.recipe.id,
                "folder": str(arm.folder) if arm.folder else None,
                "failure": arm.failure,
                "build": arm.build.model_dump(mode="json", exclude={"recipe"}) if arm.build else None,
            }
            for arm in arms
        ]
        print_json({"drafts": drafts})
    if any(arm.build is None for arm in arms):
        raise typer.Exit(1)
