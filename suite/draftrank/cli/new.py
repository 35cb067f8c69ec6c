"""`draftrank new`: a commented declaration to start from, or a target declared from its repository."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from draftrank.cli.options import JsonOption, TargetOption, WorkspaceOption
from draftrank.cli.output import ConsoleProgress, out, print_json

if TYPE_CHECKING:
    from draftrank.catalog.workspace import Workspace
    from draftrank.workflows.new_target import NewTarget


class What(StrEnum):
    """What to start."""

    draft = "draft"
    corpus = "corpus"
    task = "task"
    server = "server"
    target = "target"


def new(
    what: Annotated[What, typer.Argument(help="What to write.")],
    name: Annotated[str, typer.Argument(help="Its id: lower-case letters, digits, dots and dashes.")],
    target: TargetOption = None,
    author: Annotated[str, typer.Option(help="Name of the recipes' author.")] = "your name",
    from_hub: Annotated[
        str | None,
        typer.Option(
            "--from-hub",
            help="Of a target: its repository on the hub; without a commit, that of `main` is pinned.",
            metavar="OWNER/NAME[@COMMIT]",
        ),
    ] = None,
    from_folder: Annotated[
        Path | None,
        typer.Option("--from-folder", help="Of a target: its folder in the hub's layout.", metavar="DIR"),
    ] = None,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write a commented recipe, corpus, task or server to start from, or a target with its first recipes; an existing file is
    never overwritten.

    [bold]Example:[/bold] draftrank new draft depth8-distilled --target smollm2-135m-instruct
    """
    from draftrank.catalog.starters import start_corpus, start_draft, start_server, start_task
    from draftrank.catalog.workspace import Workspace
    from draftrank.jobs.session import default_target

    opened = Workspace.open(workspace)
    if sum(origin is not None for origin in (from_hub, from_folder)) != (what is What.target):
        raise typer.BadParameter("a target, and nothing else, takes one of --from-hub and --from-folder")
    if what is What.target:
        found = _new_target(opened, name, from_hub, from_folder, author)
        paths, questions = found.files, found.open_questions
    elif what is What.task:
        paths, questions = (start_task(opened, name),), ()
    elif what is What.server:
        paths, questions = (start_server(opened, name),), ()
    elif what is What.corpus:
        paths, questions = (start_corpus(opened, target or default_target(opened), name),), ()
    else:
        paths, questions = (start_draft(opened, target or default_target(opened), name, author),), ()
    for path in paths:
        out.print(f"written: {opened.display(path)}")
    for question in questions:
        out.print(f"to be decided: {question}")
    single = f" {opened.display(paths[0])}" if len(paths) == 1 else ""
    out.print(f"edit {'it' if single else 'them'}, then: draftrank check{single}")
    if json:
        print_json({"file": str(paths[0]), "files": [*map(str, paths)], "open_questions": [*questions]})


def _new_target(
    workspace: Workspace, name: str, from_hub: str | None, from_folder: Path | None, author: str
) -> NewTarget:
    from draftrank.workflows.new_target import target_from_folder, target_from_hub

    if from_folder is not None:
        return target_from_folder(workspace, name, from_folder, author)
    assert from_hub is not None
    with ConsoleProgress() as progress:
        return target_from_hub(workspace, name, from_hub, author, progress)
