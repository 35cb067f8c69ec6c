"""`draftrank new`: a commented declaration to start from, or a target declared from its repository."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from draftrank.cli.options import JsonOption, NamedTargetOption, WorkspaceOption
from draftrank.cli.output import ConsoleProgress, out, print_json


def new(
    what: Annotated[
        Literal["draft", "corpus", "task", "server", "target"], typer.Argument(help="What to write.")
    ],
    name: Annotated[str, typer.Argument(help="Its id: lower-case letters, digits, dots and dashes.")],
    target: NamedTargetOption = None,
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
    from draftrank.catalog.starters import start
    from draftrank.catalog.workspace import Workspace
    from draftrank.jobs.session import default_target

    opened = Workspace.open(workspace)
    if sum(origin is not None for origin in (from_hub, from_folder)) != (what == "target"):
        raise typer.BadParameter("a target, and nothing else, takes one of --from-hub and --from-folder")
    if target is not None and what not in ("draft", "corpus"):
        raise typer.BadParameter("only a draft or a corpus is for a target", param_hint="--target")
    paths: tuple[Path, ...]
    questions: tuple[str, ...] = ()
    if what == "target":
        from draftrank.workflows.new_target import target_from_folder, target_from_hub

        with ConsoleProgress() as progress:
            if from_hub is not None:
                found = target_from_hub(opened, name, from_hub, author, progress)
            else:
                assert from_folder is not None
                found = target_from_folder(opened, name, from_folder, author)
        paths, questions = found.files, found.open_questions
    else:
        of_target = (target or default_target(opened)) if what in ("draft", "corpus") else ""
        paths = (start(opened, what, name, target=of_target, author=author),)
    for path in paths:
        out.print(f"written: {opened.display(path)}")
    for question in questions:
        out.print(f"to be decided: {question}")
    single = f" {opened.display(paths[0])}" if len(paths) == 1 else ""
    out.print(f"edit {'it' if single else 'them'}, then: draftrank check{single}")
    if json:
        print_json({"file": str(paths[0]), "files": [*map(str, paths)], "open_questions": [*questions]})
