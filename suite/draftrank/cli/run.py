"""`draftrank run`: build drafts, measure them against the target, show the ranking."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from draftrank.cli import options
from draftrank.cli.output import ConsoleProgress, out, print_json

if TYPE_CHECKING:
    from draftrank.measure.sessions.references import ReferenceMethod


class ReferenceName(StrEnum):
    """What is measured beside the engine's own arms."""

    generate = "generate"
    assisted = "assisted"
    prompt_lookup = "prompt-lookup"


_METHODS: dict[ReferenceName, ReferenceMethod] = {
    ReferenceName.generate: "generate",
    ReferenceName.assisted: "assisted",
    ReferenceName.prompt_lookup: "prompt_lookup",
}
"""Their names in records."""


def run(
    target: Annotated[
        str | None, typer.Argument(help="Target to rank drafts for.", show_default=False)
    ] = None,
    draft: options.DraftsOption = None,
    suite: options.SuiteOption = "quick",
    task: options.TasksOption = None,
    backend: options.BackendOption = "auto",
    dtype: options.DtypeOrFileOption = "auto",
    device: options.DeviceOption = "auto",
    allow_mixed_backends: options.MixedOption = False,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            help="Sampling temperature; 0, the default, is greedy. Repeatable: each has its own session and board.",
            min=0.0,
            max=10.0,
            show_default=False,
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Sample from the smallest set of tokens with this probability.", min=0.001, max=1.0
        ),
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from the k most likely tokens.", min=1)] = None,
    repeats: Annotated[
        int | None,
        typer.Option(help="Repeats of every prompt, instead of the suite's number.", min=1, max=1000),
    ] = None,
    target_ci: Annotated[
        float,
        typer.Option(
            "--target-ci",
            help="With --budget: relative half-width of the 95 % intervals at which repeating ends.",
            min=0.001,
            max=1.0,
        ),
    ] = 0.02,
    budget: options.BudgetOption = None,
    reference: Annotated[
        list[ReferenceName] | None,
        typer.Option(
            help="Also measure transformers' generate: plain, with the same drafts, or with prompt lookup; "
            "repeatable.",
        ),
    ] = None,
    seed: options.SeedOption = 0,
    fresh: options.FreshOption = False,
    json: options.JsonOption = False,
    workspace: options.WorkspaceOption = None,
) -> None:
    """Build drafts, measure each against the target on real tasks, and print the ranking.

    An interrupted run resumes; a finished one is shown again.

    [bold]Example:[/bold] draftrank run smollm2-135m-instruct --suite quick
    """
    from draftrank.board.as_json import board_document
    from draftrank.board.ranking import build_boards
    from draftrank.catalog.workspace import Workspace
    from draftrank.cli.tables import print_board
    from draftrank.jobs.session import RunRequest, default_target
    from draftrank.jobs.session import run as run_job
    from draftrank.store.store import Store

    opened = Workspace.open(workspace)
    requests = [
        RunRequest(
            target=target or default_target(opened),
            drafts=tuple(draft or ()),
            suite=suite,
            tasks=tuple(task or ()),
            backend=backend,
            dtype=dtype,
            device=device,
            allow_mixed_backends=allow_mixed_backends,
            mode=mode,
            repeats=repeats,
            target_ci=target_ci,
            budget_s=options.budget_seconds(budget),
            seed=seed,
            fresh=fresh,
            references=tuple(_METHODS[one] for one in reference or ()),
        )
        for mode in options.decoding_modes(temperature or [0.0], seed, top_p, top_k)
    ]
    with Store.open(opened.store_url) as store, ConsoleProgress() as progress:
        results = [run_job(opened, request, store, progress) for request in requests]
    boards = build_boards(results)
    for board in boards:
        print_board(board)
    sessions = [result.session for result in results]
    names = ", ".join(session.id for session in sessions)
    out.print(f"session{'s' * (len(sessions) > 1)} {names} kept in {opened.display(opened.state)}")
    if json:
        ids = {"session": sessions[0].id, "sessions": [session.id for session in sessions]}
        print_json(ids | board_document(boards))
    if any(arm.failure is not None for session in sessions for arm in session.arms):
        raise typer.Exit(1)
