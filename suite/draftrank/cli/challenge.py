"""`draftrank challenge`: measure a branch's new drafts beside the leading ones."""

from __future__ import annotations

from typing import Annotated

import typer

from draftrank.cli import options
from draftrank.cli.output import ConsoleProgress, out, print_json


def challenge(
    since: options.SinceOption = "main",
    suite: options.SuiteOption = "quick",
    backend: options.BackendOption = "auto",
    dtype: options.DtypeOrFileOption = "auto",
    device: options.DeviceOption = "auto",
    allow_mixed_backends: options.MixedOption = False,
    incumbents: Annotated[int, typer.Option(help="Leading drafts to measure beside.", min=0, max=20)] = 2,
    budget: options.BudgetOption = None,
    to: options.BundlesOption = None,
    memory: options.MemoryOption = None,
    limit: options.LimitOption = None,
    json: options.JsonOption = False,
    workspace: options.WorkspaceOption = None,
) -> None:
    """Build the drafts that a branch changes and measure them in one session with the leading ones.

    Each recipe runs in its own process, within limits, and without network once everything is fetched.

    [bold]Example:[/bold] draftrank challenge --since origin/main --suite core --out bundles
    """
    from draftrank.board.pull_request import markdown, standings
    from draftrank.catalog.workspace import Workspace
    from draftrank.jobs.executors.isolated import IsolatedExecutor
    from draftrank.jobs.planning import plan_jobs
    from draftrank.jobs.session import RunRequest
    from draftrank.store.bundle import load_results, publish
    from draftrank.store.store import Store
    from draftrank.workflows.challenge import plan_challenges
    from draftrank.workflows.changed import changes_since
    from draftrank.workflows.sweep import sweep

    opened = Workspace.open(workspace)
    like = RunRequest(
        target="",
        suite=suite,
        backend=backend,
        dtype=dtype,
        device=device,
        allow_mixed_backends=allow_mixed_backends,
        budget_s=options.budget_seconds(budget),
    )
    changes = changes_since(opened, since)
    published = load_results(None, opened.published)
    planned = plan_challenges(
        opened, changes.declared.to_measure, published, like, most_incumbents=incumbents
    )
    limits = options.job_limits(memory, limit)
    plan = plan_jobs(opened, [one.request(like) for one in planned], cache=opened.cache)
    measured = {}
    failed = False
    with Store.open(opened.store_url) as store, ConsoleProgress() as progress:
        if plan.jobs:
            ledger = sweep(
                opened,
                plan,
                store,
                progress,
                lambda folder: IsolatedExecutor(opened, folder, limits, progress),
            )
            failed = set(ledger.counts) != {"done"}
            ended = {
                job.request.target: ledger.facts[job.id].session
                for job in ledger.jobs
                if job.kind == "session"
            }
            measured = {target: store.result(session) for target, session in ended.items() if session}
    files = []
    for one in planned:
        if one.target not in measured:
            continue
        result = measured[one.target]
        failed |= any(arm.failure is not None for arm in result.session.arms)
        out.print(markdown(standings([result], one.challengers)), markup=False)
        if to is not None:
            files += publish(result, to)
    if not planned:
        out.print("this branch changes no draft that must be measured")
    for path in files:
        out.print(f"written: {opened.display(path)}")
    if json:
        drafts = [
            {"target": one.target, "challengers": one.challengers, "incumbents": one.incumbents}
            for one in planned
        ]
        sessions = [result.session.id for result in measured.values()]
        print_json({"challenges": drafts, "sessions": sessions, "files": [str(path) for path in files]})
    if failed:
        raise typer.Exit(1)
