"""`draftrank run`: build drafts, measure them against the target, show the ranking."""

from __future__ import annotations

from typing import Annotated

import typer

from draftrank.cli.options import (
    BackendName,
    BackendOption,
    DeviceName,
    DeviceOption,
    DtypeName,
    DtypeOption,
    JsonOption,
    MixedOption,
    ReferenceName,
    WorkspaceOption,
    parse_duration,
)
from draftrank.cli.output import ConsoleProgress, out, print_json


def run(
    target: Annotated[
        str | None, typer.Argument(help="Target to rank drafts for.", show_default=False)
    ] = None,
    draft: Annotated[
        list[str] | None,
        typer.Option(
            "--draft",
            "-d",
            help="Only this draft; repeatable. Default: all recipes with `effort: minutes`.",
            metavar="ID",
        ),
    ] = None,
    suite: Annotated[
        str,
        typer.Option(
            "--suite", "-s", help="Suite to measure on: quick, core, full or your own.", metavar="ID"
        ),
    ] = "quick",
    task: Annotated[
        list[str] | None, typer.Option("--task", help="Only this task; repeatable.", metavar="ID")
    ] = None,
    backend: BackendOption = BackendName.auto,
    dtype: DtypeOption = DtypeName.auto,
    device: DeviceOption = DeviceName.auto,
    allow_mixed_backends: MixedOption = False,
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
            "--target-ci", help="Relative half-width of the 95 % intervals to reach.", min=0.001, max=1.0
        ),
    ] = 0.02,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Decoding time for repeats until --target-ci is reached, e.g. 90s, 30m, 2h. "
            "Default: only the suite's own repeats.",
            metavar="TIME",
        ),
    ] = None,
    reference: Annotated[
        list[ReferenceName] | None,
        typer.Option(
            help="Also measure transformers' generate: plain, with the same drafts, or with prompt lookup; "
            "repeatable.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of arm order and sampling.", min=0)] = 0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure again even if the session is finished.")
    ] = False,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Build drafts, measure each against the target on real tasks, and print the ranking.

    An interrupted run resumes; a finished one is shown again.

    [bold]Example:[/bold] draftrank run smollm2-135m-instruct --suite quick
    """
    from draftrank.board.as_json import board_document
    from draftrank.board.ranking import build_boards
    from draftrank.catalog.decoding_mode import DecodingMode
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
            backend=backend.value,
            dtype=dtype.value,
            device=device.value,
            allow_mixed_backends=allow_mixed_backends,
            mode=DecodingMode(temperature=one, top_p=top_p, top_k=top_k, seed=seed),
            repeats=repeats,
            target_ci=target_ci,
            budget_s=parse_duration(budget, "--budget") if budget else None,
            seed=seed,
            fresh=fresh,
            references=tuple(entry.method for entry in reference or ()),
        )
        for one in dict.fromkeys(temperature or [0.0])
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
