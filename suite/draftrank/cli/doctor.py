"""`draftrank doctor`: is this machine fit to measure on, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import typer
from rich.text import Text

from draftrank.cli.options import JsonOption, WorkspaceOption
from draftrank.cli.output import out, print_json

Status = Literal["ok", "warning", "missing"]
_STYLES = {"ok": "green", "warning": "yellow", "missing": "bold red"}
BUSY_SHARE = 0.15
LEAST_MEMORY_BYTES = 4 << 30
LEAST_DISK_BYTES = 5 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    what: str
    status: Status
    found: str
    fix: str | None = None


def doctor(json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Look at Python, packages, threads, memory, GPU, load and the workspace; say how to mend each.

    [bold]Example:[/bold] draftrank doctor
    """
    from draftrank.catalog.workspace import Workspace

    findings = [*_packages(), *_machine(), *_workspace(Workspace.open(workspace))]
    for finding in findings:
        line = Text.assemble(
            (f"{finding.status:8}", _STYLES[finding.status]), f"{finding.what:14}{finding.found}"
        )
        if finding.fix:
            line.append(f"  → {finding.fix}", "dim")
        out.print(line)
    if json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    if any(finding.status == "missing" for finding in findings):
        raise typer.Exit(1)


def _packages() -> Iterator[Finding]:
    from draftrank.measure.machine import PACKAGES, package_version

    version = platform.python_version()
    enough = sys.version_info >= (3, 11)
    yield Finding(
        "python", "ok" if enough else "missing", version, None if enough else "install Python 3.11 or newer"
    )
    for name in PACKAGES:
        found = package_version(name)
        yield Finding(
            name,
            "ok" if found else "missing",
            found or "not installed",
            None if found else f"pip install {name}",
        )


def _machine() -> Iterator[Finding]:
    import psutil

    from draftrank.decoding.environment import compute_environment
    from draftrank.measure.machine import read_machine

    compute = compute_environment()
    machine = read_machine("cuda" if compute.gpu else "cpu")
    yield Finding("processor", "ok", f"{machine.cpu}, {machine.cores} cores")
    yield Finding("class", "ok", machine.machine_class)
    matched = compute.threads <= machine.cores
    yield Finding(
        "threads",
        "ok" if matched else "warning",
        f"torch computes with {compute.threads}",
        None if matched else f"set OMP_NUM_THREADS={machine.cores}",
    )
    free = psutil.virtual_memory().available
    roomy = free >= LEAST_MEMORY_BYTES
    yield Finding(
        "memory",
        "ok" if roomy else "warning",
        f"{free / 2**30:.1f} GiB free of {machine.memory_bytes / 2**30:.1f}",
        None if roomy else "close other programs: the default target with its drafts wants 4 GiB",
    )
    if compute.gpu:
        yield Finding("gpu", "ok", compute.gpu)
    else:
        yield Finding("gpu", "ok", "none; runs use the CPU")
    busy = psutil.cpu_percent(interval=1.0) / 100
    quiet = busy <= BUSY_SHARE
    yield Finding(
        "load",
        "ok" if quiet else "warning",
        f"{busy:.0%} of the processor is busy",
        None
        if quiet
        else "stop other work while you measure: two torch processes slow each other many times over",
    )


def _workspace(workspace: object) -> Iterator[Finding]:
    from draftrank.catalog.workspace import Workspace

    assert isinstance(workspace, Workspace)
    checked = workspace.check()
    count = f"{len(checked.targets)} targets, {len(checked.recipes)} drafts, {len(checked.tasks)} tasks"
    yield Finding(
        "workspace",
        "warning" if checked.problems else "ok",
        f"{workspace.root}: {count}, {len(checked.problems)} problems",
        "run `draftrank check`" if checked.problems else None,
    )
    folder = workspace.state if workspace.state.exists() else workspace.root
    disk = shutil.disk_usage(folder).free
    roomy = disk >= LEAST_DISK_BYTES
    writable = os.access(folder, os.W_OK)
    yield Finding(
        "disk",
        "ok" if roomy and writable else "warning",
        f"{disk / 2**30:.1f} GiB free for {workspace.state}",
        None
        if roomy and writable
        else "set DRAFTRANK_STATE and DRAFTRANK_CACHE to folders you may write with 5 GiB free",
    )
