"""The results a command shows: the local store and the published bundles, merged."""

from __future__ import annotations

from draftrank.catalog.workspace import Workspace
from draftrank.measure.records import SessionResult


def read_results(workspace: Workspace, *, local: bool = True) -> tuple[SessionResult, ...]:
    """Every session that the workspace knows of; `local=False` leaves the store out."""
    from draftrank.store.bundle import load_results
    from draftrank.store.store import Store

    if not local or not workspace.has_store:
        return load_results(None, workspace.published)
    with Store.open(workspace.store_url) as store:
        return load_results(store, workspace.published)


def require_known(workspace: Workspace, *, target: str | None = None, suite: str | None = None) -> None:
    """For a selection that found no result: refuses names that are not declared either.

    Raises:
        InvalidInputError: the target or the suite is unknown, which is another thing than unmeasured.
    """
    if target is not None:
        workspace.target(target)
    if suite is not None:
        workspace.suite(suite)
