"""A plan from its beginning to its record: a folder for it, an executor, and what became of each job."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from draftrank.catalog.workspace import Workspace
from draftrank.jobs.execute import execute
from draftrank.jobs.job import Executor
from draftrank.jobs.ledger import Ledger
from draftrank.jobs.planning import Plan
from draftrank.progress import Progress
from draftrank.store.store import Store


def sweep(
    workspace: Workspace,
    plan: Plan,
    store: Store,
    progress: Progress,
    executor_in: Callable[[Path], Executor],
) -> Ledger:
    """Runs a plan and keeps its record in a folder of its own below the workspace's state.

    Ctrl-C ends what runs at its next safe point and is raised again; the record says so.

    Args:
        executor_in: makes the executor, given the folder for its logs.
    """
    folder = workspace.state / "sweeps" / datetime.now(UTC).strftime("%Y-%m-%dT%H%M%S.%fZ")
    ledger = Ledger.begin(folder, plan)
    progress.message(f"logs and record: {workspace.display(folder)}")
    with closing(executor_in(folder)) as executor:
        execute(ledger, executor, store, progress)
    return ledger
