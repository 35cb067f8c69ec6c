"""`draftrank export`: a draft as a folder for other programs."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from draftrank.cli.options import DeviceOption, JsonOption, TargetOfDraftOption, WorkspaceOption
from draftrank.cli.output import ConsoleProgress, out, print_json


class ProgramName(StrEnum):
    """Programs that a draft is exported for."""

    transformers = "transformers"
    vllm = "vllm"
    sglang = "sglang"
    llama_cpp = "llama.cpp"
    speculators = "speculators"


def export(
    draft: Annotated[str, typer.Argument(help="The draft's id.", show_default=False)],
    to: Annotated[Path, typer.Option(help="New folder to write it to.", metavar="DIR", show_default=False)],
    target: TargetOfDraftOption = None,
    programs: Annotated[
        list[ProgramName] | None,
        typer.Option(
            "--for", help="Write the form that this program opens; repeatable. Default: transformers."
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Write every form there is, each in a folder of its own.")
    ] = False,
    device: DeviceOption = "auto",
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write a draft as another program opens it, without draftrank, with a model card.

    [bold]Example:[/bold] draftrank export depth4-distilled --for vllm --to ./depth4-distilled
    """
    from draftrank.catalog.programs import NAMES, PROGRAMS
    from draftrank.catalog.workspace import Workspace
    from draftrank.cli.results import open_archive
    from draftrank.errors import InvalidInputError
    from draftrank.workflows.export import export as export_draft

    if every and programs:
        raise InvalidInputError.single("cannot be had together", field="--all and --for", fix="leave one out")
    wanted = [one for one in PROGRAMS if one in (programs or ("transformers",))]
    opened = Workspace.open(workspace)
    named = target or opened.find_recipe(draft).target
    with open_archive(opened) as archive:
        results, parities = tuple(map(archive.result, archive.sessions)), archive.parities
    with ConsoleProgress() as progress:
        done = export_draft(
            opened,
            named,
            draft,
            to,
            results,
            parities,
            programs=() if every else wanted,
            device=device,
            progress=progress,
        )
    for form in done.forms:
        out.print(Text.assemble((NAMES[form.program], "bold"), f": {form.folder} ({', '.join(form.files)})"))
        if form.use.remark:
            out.print(Text(form.use.remark))
        out.print(Text(f"{form.use.snippet}\n"))
    if every:
        for program, reason in done.without.items():
            out.print(Text.assemble((NAMES[program], "bold"), f": no form, {reason}"))
    if json:
        print_json(
            {
                "forms": [
                    {
                        "program": form.program,
                        "folder": str(form.folder),
                        "files": list(form.files),
                        "use": asdict(form.use),
                    }
                    for form in done.forms
                ],
                "without": done.without,
            }
        )
