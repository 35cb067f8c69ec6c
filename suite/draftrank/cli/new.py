"""`draftrank new`: a commented declaration to start from."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from draftrank.cli.options import JsonOption, TargetOption, WorkspaceOption
from draftrank.cli.output import out, print_json


class What(StrEnum):
    """What to start."""

    draft = "draft"
    corpus = "corpus"
    task = "task"


def new(
    what: Annotated[What, typer.Argument(help="What to write.")],
    name: Annotated[str, typer.Argument(help="Its id: lower-case letters, digits, dots and dashes.")],
    target: TargetOption = None,
    author: Annotated[str, typer.Option(help="Name of the recipe's author.")] = "your name",
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write a commented recipe, corpus or task to start from; an existing file is never overwritten.

    [bold]Example:[/bold] draftrank new draft depth8-distilled --target smollm2-135m-instruct
    """
    from draftrank.catalog.starters import start_corpus, start_draft, start_task
    from draftrank.catalog.workspace import Workspace
    from draftrank.jobs.session import default_target

    opened = Workspace.open(workspace)
    if what is What.task:
        path = start_task(opened, name)
    elif what is What.corpus:
        path = start_corpus(opened, target or default_target(opened), name)
    else:
        path = start_draft(opened, target or default_target(opened), name, author)
    shown = opened.display(path)
    out.print(f"written: {shown}\nedit it, then: draftrank check {shown}")
    if json:
        print_json({"file": str(path)})
