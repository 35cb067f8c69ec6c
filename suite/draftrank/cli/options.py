"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Dtype(StrEnum):
    """Precision of the target."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Device(StrEnum):
    """Where to run."""

    cpu = "cpu"
    cuda = "cuda"


WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace", "-w", help="Folder with drafts/ and tasks/; default: here or above.", metavar="DIR"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one compact JSON object as the last line.")]
TargetOption = Annotated[str | None, typer.Option("--target", "-t", help="Only this target.", metavar="ID")]
