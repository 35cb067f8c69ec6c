"""`draftrank check`: validate declarations, and write them in canonical form."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from draftrank.cli.options import JsonOption, WorkspaceOption
from draftrank.cli.output import err, out, print_json, print_problems


def check(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Only these files. Default: everything.", show_default=False)
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Rewrite valid files in canonical form.")] = False,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Validate recipes, corpora, tasks, suites, servers and targets; every problem is named at once.

    [bold]Example:[/bold] draftrank check --fix
    """
    from draftrank.catalog.formatting import format_file, is_canonical
    from draftrank.catalog.workspace import Workspace
    from draftrank.errors import InvalidInputError, Problem

    opened = Workspace.open(workspace)
    known = dict(opened.declaration_paths())
    chosen = [path.resolve() for path in files] if files else None
    for path in chosen or []:
        if path not in known:
            raise InvalidInputError.single(
                "is not a declaration of this workspace",
                file=str(path),
                fix="recipes lie in drafts/<target>/, corpora in drafts/<target>/corpora/, tasks in tasks/, suites in "
                "tasks/suites/, servers in tasks/servers/",
            )
    checked = opened.check(chosen)
    problems = list(checked.problems)
    broken = {problem.file for problem in problems}
    rewritten = []
    for path, model in known.items():
        name = opened.display(path)
        if (chosen is not None and path not in chosen) or name in broken:
            continue
        if fix:
            if format_file(path, model):
                rewritten.append(name)
        elif not is_canonical(path, model):
            problems.append(Problem("is not in canonical form", name, fix="run `draftrank check --fix`"))
    print_problems(tuple(problems))
    for name in rewritten:
        err.print(f"rewritten: {name}")
    count = len(chosen) if chosen is not None else len(known)
    out.print(f"{count} files checked, {len(problems)} problems")
    if json:
        print_json(
            {"files": count, "rewritten": rewritten, "problems": [asdict(problem) for problem in problems]}
        )
    if problems:
        raise typer.Exit(1)
