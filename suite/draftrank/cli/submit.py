"""`draftrank submit`: the last step before a pull request."""

from __future__ import annotations

from typing import Annotated

import typer

from draftrank.cli.options import JsonOption, TargetOfDraftOption, WorkspaceOption
from draftrank.cli.output import out, print_json


def submit(
    draft: Annotated[str, typer.Argument(help="The draft's id.")],
    target: TargetOfDraftOption = None,
    session: Annotated[
        str | None, typer.Option("--session", help="Publish this session, not the newest.", metavar="ID")
    ] = None,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Check a draft's recipe, write its newest result as a bundle, and print the pull request's text.

    [bold]Example:[/bold] draftrank submit depth8-distilled --target smollm2-135m-instruct
    """
    from draftrank.catalog.workspace import Workspace
    from draftrank.store.store import Store
    from draftrank.workflows.submit import submit as submit_job

    opened = Workspace.open(workspace)
    named = target or opened.find_recipe(draft).target
    with Store.open(opened.store_url) as store:
        found = submit_job(opened, named, draft, store, session=session)
    files = [opened.display(path) for path in (*found.recipe, *found.declared, *found.bundles)]
    out.print("Commit these files and open a pull request with them:\n")
    out.print("  git add " + " ".join(files), markup=False, soft_wrap=True)
    out.print(f"\nTitle: {found.title}\n\n{found.text}", markup=False, highlight=False, soft_wrap=True)
    if json:
        print_json({"files": files, "title": found.title, "text": found.text})
