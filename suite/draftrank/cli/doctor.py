"""`draftrank doctor`: is this machine fit to measure on, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from rich.text import Text

from draftrank.cli.doctor_machine import Finding, Status, look_at_machine
from draftrank.cli.options import JsonOption, WorkspaceOption
from draftrank.cli.output import out, print_json

if TYPE_CHECKING:
    from draftrank.catalog.workspace import Checked, Workspace

_STYLES: dict[Status, str] = {"ok": "green", "warning": "yellow", "absent": "dim", "missing": "bold red"}
MIN_DISK_BYTES = 5 << 30
OPTIONAL = {
    "llama-cpp-python": ("llama-cpp", "targets and drafts in GGUF"),
    "torchao": ("torchao", "drafts quantized by torchao"),
    "bitsandbytes": ("bitsandbytes", "drafts in nf4 and llm_int8"),
    "gptqmodel": ("gptq", "drafts quantized by GPTQ"),
    "optimum": ("gptq", "drafts quantized by GPTQ"),
    "psycopg": ("postgresql", "results in a PostgreSQL server"),
    "ray": ("ray", "sweeps on a Ray cluster"),
    "optuna": ("search", "`draftrank search`"),
}
"""Optional packages: the extra that brings each, and what needs it."""


def doctor(json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """Check Python, packages, the machine, its load and the workspace, and print a fix for each problem.

    Exit code 1 means that a required package is missing. Warnings and absent optional packages leave it at 0.

    [bold]Example:[/bold] draftrank doctor
    """
    from draftrank.catalog.workspace import Workspace

    opened = Workspace.open(workspace)
    findings = [*_packages()]
    missing = any(finding.status == "missing" for finding in findings)
    if not missing:  # the rest needs the packages
        checked = opened.check()
        findings += [*look_at_machine(), *_engines(opened, checked), *_workspace(opened, checked)]
    status_width, width = (max(map(len, column)) for column in (_STYLES, (one.what for one in findings)))
    for finding in findings:
        line = Text.assemble(
            (f"{finding.status:{status_width}}", _STYLES[finding.status]),
            f"  {finding.what:{width}}  {finding.found}",
        )
        if finding.fix:
            line.append(f"  → {finding.fix}", "dim")
        out.print(line)
    if json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    if missing:
        raise typer.Exit(1)


def _packages() -> Iterator[Finding]:
    from draftrank.measure.machine.fingerprint import PACKAGES, package_version

    enough = sys.version_info >= (3, 11)
    yield Finding.of(
        "python", enough, platform.python_version(), "install Python 3.11 or newer", otherwise="missing"
    )
    for name in PACKAGES:
        if name.replace("_", "-") not in OPTIONAL:
            found = package_version(name)
            yield Finding.of(
                name, bool(found), found or "not installed", "pip install draftrank", otherwise="missing"
            )
    for name, (extra, purpose) in OPTIONAL.items():
        found = package_version(name)
        told = found or f"not installed; only needed for {purpose}"
        here = ", or `make llama-cpp` in a checkout" if extra == "llama-cpp" else ""
        fix = f"pip install 'draftrank[{extra}]'{here}"
        yield Finding.of(name, bool(found), told, fix, otherwise="absent")


def _engines(workspace: Workspace, checked: Checked) -> Iterator[Finding]:
    from draftrank.serving.engines import ENGINES
    from draftrank.serving.http import ServerError

    for name, kind in ENGINES.items():
        what, program = f"engine {name}", kind.find(workspace.root)
        if program is None:
            needed = "not here; only needed for `draftrank serve-bench`"
            if name != "sglang":
                needed += f" and `draftrank parity --engine {name}`"
            yield Finding(what, "absent", needed, kind.get)
            continue
        try:
            servers = ", ".join(one.id for one in checked.servers if one.engine == name)
            runs = f"; serves {servers}" if servers else ""
            yield Finding(what, "ok", f"{kind(program).version()}, {program}{runs}")
        except ServerError as error:
            yield Finding(what, "warning", str(error), kind.get)


def _workspace(workspace: Workspace, checked: Checked) -> Iterator[Finding]:
    count = f"{len(checked.targets)} targets, {len(checked.recipes)} drafts, {len(checked.tasks)} tasks, {len(checked.servers)} servers"
    told = f"{workspace.root}: {count}, {len(checked.problems)} problems"
    yield Finding.of("workspace", not checked.problems, told, "run `draftrank check`")
    folder = workspace.state if workspace.state.exists() else workspace.root
    disk = shutil.disk_usage(folder).free
    yield Finding.of(
        "disk",
        disk >= MIN_DISK_BYTES and os.access(folder, os.W_OK),
        f"{disk / 2**30:.1f} GiB free for {workspace.state}",
        "set DRAFTRANK_STATE and DRAFTRANK_CACHE to folders you may write with 5 GiB free",
    )
