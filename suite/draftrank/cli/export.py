"""`draftrank export`: a draft as a folder for other programs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from draftrank.cli.options import DeviceName, DeviceOption, JsonOption, TargetOption, WorkspaceOption
from draftrank.cli.output import ConsoleProgress, out, print_json


def export(
    draft: Annotated[str, typer.Argument(help="The draft's id.", show_default=False)],
    to: Annotated[Path, typer.Option(help="New folder to write it to.", metavar="DIR", show_default=False)],
    target: TargetOption = None,
    gguf: Annotated[bool, typer.Option("--gguf", help="Write a GGUF file for llama.cpp too.")] = False,
    device: DeviceOption = DeviceName.auto,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write a draft as a Hugging Face folder with a model card, ready for other programs.

    [bold]Example:[/bold] draftrank export depth4-distilled --to ./depth4-distilled --gguf
    """
    from draftrank.catalog.workspace import Workspace
    from draftrank.cli.results import read_results
    from draftrank.jobs.session import default_target
    from draftrank.workflows.export import export as export_job

    opened = Workspace.open(workspace)
    with ConsoleProgress() as progress:
        done = export_job(
            opened,
            target or default_target(opened),
            draft,
            to,
            read_results(opened),
            gguf=gguf,
            device=device.value,
            progress=progress,
        )
    out.print(Text.assemble((f"{draft}", "bold"), f" is in {done.folder}: {', '.join(done.files)}"))
    for use in done.uses:
        out.print(Text.assemble(("\n" + use.program, "bold"), f": {use.remark}" if use.remark else ""))
        if use.snippet:
            out.print(Text(use.snippet))
    if json:
        print_json(
            {
                "folder": str(done.folder),
                "files": list(done.files),
                "uses": [asdict(use) for use in done.uses],
            }
        )
