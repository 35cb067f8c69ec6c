"""`draftrank parity`: does a draft do in another engine what it does here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

from draftrank.cli import options
from draftrank.cli.output import ConsoleProgress, new_table, out, print_facts, print_json, print_table

if TYPE_CHECKING:
    from draftrank.measure.parity import LengthRatio, Parity, ParityReport

_STYLES = {"holds": "bold green", "fails": "bold red", "undecided": "bold yellow"}


def parity(
    draft: Annotated[str, typer.Argument(help="The draft's id.", show_default=False)],
    engine: Annotated[
        Literal["vllm", "llama.cpp", "transformers"],
        typer.Option(help="The other engine.", show_default=False),
    ],
    target: options.TargetOfDraftOption = None,
    suite: Annotated[str, typer.Option(help="The suite whose prompts are decoded.", metavar="ID")] = "quick",
    task: options.TasksOption = None,
    backend: options.BackendOption = "auto",
    dtype: options.DtypeOption = "fp32",
    device: options.DeviceOption = "cpu",
    json: options.JsonOption = False,
    workspace: options.WorkspaceOption = None,
) -> None:
    """Export a draft, run it in another engine and here on the same prompts, and compare. Exit code 1 means no parity.

    Parity holds where outputs are equal but for numerical ties, the engine's counts agree with its outputs, and acceptance
    lengths differ by at most 2 %.

    [bold]Example:[/bold] draftrank parity ngram --target smollm2-135m-instruct --engine vllm --suite glance
    """
    from draftrank.board.parity import parity_document
    from draftrank.catalog.workspace import Workspace
    from draftrank.jobs.session import RunRequest
    from draftrank.measure.parity import report_of
    from draftrank.store.store import Store
    from draftrank.workflows.parity import parity as prove

    opened = Workspace.open(workspace)
    asked = RunRequest(
        target=target or opened.find_recipe(draft).target,
        drafts=(draft,),
        suite=suite,
        tasks=tuple(task or ()),
        backend=backend,
        dtype=dtype,
        device=device,
    )
    with Store.open(opened.store_url) as store, ConsoleProgress() as progress:
        found = prove(opened, asked, engine, progress)
        store.add_parity(found)
    report = report_of(found)
    _print(found, report)
    out.print(f"parity {found.id} kept in {opened.display(opened.state)}")
    if json:
        print_json(parity_document(found, report))
    if report.verdict != "holds":
        raise typer.Exit(1)


def _print(parity: Parity, report: ParityReport) -> None:
    there = f"{parity.engine} {parity.engine_version}"
    out.print(
        Text.assemble(
            (parity.draft, "bold"), f" in {there}, {parity.dtype}, k={parity.num_speculative_tokens}"
        )
    )
    table = new_table("task", "here", "there", "ratio", "95 % interval")
    for task, lengths in report.tasks.items():
        table.add_row(task, *_cells(lengths))
    table.add_row("all", *_cells(report.overall), style="bold")
    print_table(table)
    speeds = report.speeds
    print_facts(
        {
            "outputs there, with the draft against without": report.outputs.sentence(),
            "outputs without the draft, there against here": report.target.sentence(),
            "tokens per second here": f"{_number(speeds.plain_here)}, with the draft {_number(speeds.draft_here)}",
            "tokens per second there": f"{_number(speeds.plain_there)}, with the draft {_number(speeds.draft_there)}",
            "rounding between the engines": f"{parity.rounding:.2g} logits over {parity.rounding_positions} tokens",
        }
    )
    for difference in parity.differs:
        out.print(Text(f"known: {difference}", "dim"))
    for told in report.disagreements[:5]:
        out.print(Text(f"counts: {told}", "yellow"))
    verdict = {"holds": "parity holds", "fails": "no parity", "undecided": "undecided: too few prompts"}
    reasons = f": {'; '.join(report.reasons)}" if report.reasons else ""
    out.print(Text.assemble((verdict[report.verdict], _STYLES[report.verdict]), reasons))


def _cells(lengths: LengthRatio) -> tuple[str, ...]:
    found = lengths.ratio
    interval = found.interval if found else None
    return (
        _number(lengths.here),
        _number(lengths.there),
        f"{found.value:.3f}" if found else "–",
        f"{interval.low:.3f} to {interval.high:.3f}" if interval else "–",
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
