"""`draftrank predict`: what a draft should give on another machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from draftrank.cli import options
from draftrank.cli.output import out, print_facts, print_json


def predict(
    draft: Annotated[str, typer.Argument(help="The draft's id.", show_default=False)],
    machine: Annotated[
        str,
        typer.Option(
            "--machine", "-m", help="Machine class with results, or a part of its name.", metavar="CLASS"
        ),
    ],
    target: options.TargetOption = None,
    backend: options.BackendFilter = "auto",
    dtype: options.DtypeFilter = "auto",
    device: Annotated[
        options.AnyDevice, typer.Option(help="Only results on this device. auto: on any.")
    ] = "auto",
    json: options.JsonOption = False,
    workspace: options.WorkspaceOption = None,
) -> None:
    """Predict a draft's speedup on a machine, from acceptance measured anywhere and forward times measured there.

    [bold]Example:[/bold] draftrank predict ngram --machine amd-epyc --target smollm2-135m-instruct
    """
    from draftrank.board.formats import day, times
    from draftrank.catalog.workspace import Workspace
    from draftrank.cli.results import read_results
    from draftrank.cli.tables import by_k
    from draftrank.measure.cost.what_if import predict_elsewhere

    opened = Workspace.open(workspace)
    if target is not None:
        opened.target(target)
    wanted = {"backend": backend, "dtype": dtype, "device": device}
    results = [
        result
        for result in read_results(opened)
        if all(value in ("auto", getattr(result.session, name)) for name, value in wanted.items())
    ]
    found = predict_elsewhere(results, draft, machine, target)
    prediction, bounds = found.prediction, found.prediction.bounds
    out.print(
        Text.assemble(
            ("\n" + draft, "bold"),
            f" with k = {found.k} on {found.machine_class}: predicted ",
            (times(prediction.speedup), "bold"),
        )
    )
    facts = {
        "tasks": ", ".join(f"{task} {times(value)}" for task, value in prediction.tasks.items()),
        "by k": by_k(prediction),
        "at most": f"{times(bounds.free_draft)} if the draft were free, {times(bounds.perfect_draft)} if it were "
        f"always right, {times(bounds.ceiling)} if both",
        "acceptance": f"{found.steps} steps of session {found.acceptance.id} ({found.acceptance.suite}, "
        f"{found.acceptance.backend_and_dtype}, {found.acceptance.mode.label}, {found.acceptance.machine.machine_class})",
        "forward times": f"of {found.times_arm} in session {found.times.id} ({day(found.times.created_at)})",
        "assumed": "; ".join(found.assumptions),
    }
    print_facts(facts)
    if json:
        print_json(
            {
                "draft": draft,
                "target": found.acceptance.target,
                "machine_class": found.machine_class,
                "k": found.k,
                "predicted_speedup": prediction.speedup,
                "tasks": dict(prediction.tasks),
                "by_k": [asdict(at) for at in prediction.by_k],
                "best_k": prediction.best.k,
                "bounds": asdict(bounds),
                "acceptance_session": found.acceptance.id,
                "acceptance_steps": found.steps,
                "times_session": found.times.id,
                "times_arm": found.times_arm,
                "assumptions": list(found.assumptions),
            }
        )
