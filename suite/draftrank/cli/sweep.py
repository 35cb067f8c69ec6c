"""`draftrank sweep`: many sessions as a plan of jobs, here or on a cluster."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.text import Text

from draftrank.cli import options
from draftrank.cli.output import ConsoleProgress, out, print_json

if TYPE_CHECKING:
    from draftrank.catalog.workspace import Workspace
    from draftrank.jobs.executors.isolated import Limits
    from draftrank.jobs.job import Executor
    from draftrank.jobs.ledger import Ledger
    from draftrank.jobs.planning import Plan
    from draftrank.progress import Progress
    from draftrank.store.store import Store


class BackendName(StrEnum):
    """`catalog.backend.Backend` and `auto`: typer takes lists of enumerations only."""

    auto = "auto"
    transformers = "transformers"
    cpp = "cpp"
    cuda_graphs = "cuda-graphs"
    llama_cpp = "llama.cpp"


class DtypeName(StrEnum):
    """`catalog.backend.AskedDtype`."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    file = "file"


ExecutorName = Literal["isolated", "inline", "ray"]


def sweep(
    target: Annotated[
        list[str] | None, typer.Argument(help="Targets. Default: all with recipes.", show_default=False)
    ] = None,
    draft: options.DraftsOption = None,
    suite: Annotated[
        list[str] | None, typer.Option("--suite", "-s", help="Repeatable. Default: quick.", metavar="ID")
    ] = None,
    backend: Annotated[
        list[BackendName] | None, typer.Option(help="As for `run`; repeatable. Default: auto.")
    ] = None,
    dtype: Annotated[
        list[DtypeName] | None, typer.Option(help="As for `run`; repeatable. Default: auto.")
    ] = None,
    device: options.DeviceOption = "auto",
    allow_mixed_backends: options.MixedOption = False,
    per_session: Annotated[
        int,
        typer.Option(
            help="Maximum of drafts per session. Only drafts of one session are compared prompt by prompt.",
            min=1,
        ),
    ] = 8,
    executor: Annotated[
        ExecutorName,
        typer.Option(help="Run each job in its own process, all in this process, or on a Ray cluster."),
    ] = "isolated",
    address: Annotated[str, typer.Option(help="Address of the Ray cluster.")] = "auto",
    memory: options.MemoryOption = None,
    limit: options.LimitOption = None,
    fresh: options.FreshOption = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its time only.")] = False,
    json: options.JsonOption = False,
    workspace: options.WorkspaceOption = None,
) -> None:
    """Fetch, build and measure for many targets, suites, backends and dtypes; a job that fails stops no other.

    Finished work is left out. Ctrl-C ends the running job at its next safe point, and the same command resumes.
    `draftrank status` shows the progress.

    [bold]Example:[/bold] draftrank sweep smollm2-135m-instruct --suite core --dtype fp32 --dtype bf16 --dry-run
    """
    from draftrank.catalog.workspace import Workspace
    from draftrank.cli.results import read_results
    from draftrank.errors import InvalidInputError
    from draftrank.jobs.planning import plan_jobs
    from draftrank.jobs.session import RunRequest, choose_recipes, resolved
    from draftrank.store.store import Store
    from draftrank.workflows.sweep import sweep as run_plan

    limits = options.job_limits(memory, limit)
    if executor != "isolated" and (memory or limit):
        raise InvalidInputError.single(
            "are for jobs in processes of their own",
            field="--memory and --limit",
            fix="leave them out, or use --executor isolated",
        )
    if executor != "ray" and address != "auto":
        raise InvalidInputError.single(
            "is of a Ray cluster", field="--address", fix="leave it out, or use --executor ray"
        )
    opened = Workspace.open(workspace)
    targets = target or sorted({path.parent.name for path in opened.recipe_paths()})
    requests = []
    for one in targets:
        recipes = [recipe.id for recipe in choose_recipes(opened, one, tuple(draft or ()))]
        for first in range(0, len(recipes), per_session):
            requests += [
                RunRequest(
                    one,
                    tuple(recipes[first : first + per_session]),
                    suite_id,
                    backend=of_backend.value,
                    dtype=of_dtype.value,
                    device=device,
                    allow_mixed_backends=allow_mixed_backends,
                    leave_misfits_out=not draft,
                    fresh=fresh,
                )
                for suite_id in suite or ["quick"]
                for of_backend in backend or [BackendName.auto]
                for of_dtype in dtype or [DtypeName.auto]
            ]
    machine_class: str | None = None
    cache: Path | None = None
    if executor != "ray":  # of a cluster, nobody knows what its machines are before it runs
        from draftrank.catalog.backend import Asked
        from draftrank.engine.backends.choice import device_for
        from draftrank.measure.machine.fingerprint import read_machine

        requests = [resolved(opened, request) for request in requests]
        machine_class, cache = read_machine(device_for(Asked(device=device))).machine_class, opened.cache
    plan = plan_jobs(opened, requests, read_results(opened), machine_class=machine_class, cache=cache)
    _print(plan)
    if dry_run or not plan.jobs:
        if json:
            print_json(_document(plan, None))
        return
    with Store.open(opened.store_url) as store, ConsoleProgress() as progress:
        ledger = run_plan(
            opened,
            plan,
            store,
            progress,
            lambda folder: _executor(executor, opened, store, folder, address, limits, progress),
        )
        measured = {facts.session for facts in ledger.facts.values()}
        failed = [
            f"{arm.id} failed in session {session.id}: {arm.failure.splitlines()[0]}"
            for session in store.sessions()
            if session.id in measured
            for arm in session.arms
            if arm.failure
        ]
    for told in failed:
        out.print(Text(told))
    counts = ", ".join(f"{count} {state}" for state, count in sorted(ledger.counts.items()))
    out.print(f"{len(plan.jobs)} jobs: {counts}")
    if json:
        print_json(_document(plan, ledger))
    if failed or set(ledger.counts) - {"done"}:
        raise typer.Exit(1)


def _executor(
    name: ExecutorName,
    workspace: Workspace,
    store: Store,
    folder: Path,
    address: str,
    limits: Limits,
    progress: Progress,
) -> Executor:
    if name == "inline":
        from draftrank.jobs.executors.inline import InlineExecutor

        return InlineExecutor(workspace, store, progress)
    if name == "ray":
        import os

        from draftrank.jobs.executors.ray_cluster import RayExecutor

        shared = ("DRAFTRANK_CACHE", "DRAFTRANK_SHARED")
        return RayExecutor(
            workspace, address, {name: os.environ[name] for name in shared if os.environ.get(name)}
        )
    from draftrank.jobs.executors.isolated import IsolatedExecutor

    return IsolatedExecutor(workspace, folder, limits, progress)


def _print(plan: Plan) -> None:
    for one in plan.left_out:
        out.print(Text(f"left out: {one.id}; {one.reason}", "dim"))
    for job in plan.jobs:
        time = f", about {_duration(job.estimate_s)}" if job.estimate_s else ""
        out.print(Text(f"{job.id}{time}"))
    total = plan.estimate_s
    known = sum(job.estimate_s or 0.0 for job in plan.jobs)
    out.print(
        f"{len(plan.jobs)} jobs"
        + (f", about {_duration(known)}{'' if total else ' and what is unknown'}" if known else "")
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _document(plan: Plan, ledger: Ledger | None) -> dict[str, object]:
    return {
        "jobs": [
            {
                "id": job.id,
                "kind": job.kind,
                "needs": job.needs,
                "after": job.after,
                "estimate_s": job.estimate_s,
            }
            | (asdict(ledger.facts[job.id]) if ledger else {})
            for job in plan.jobs
        ],
        "left_out": [asdict(one) for one in plan.left_out],
        "folder": str(ledger.folder) if ledger else None,
    }
