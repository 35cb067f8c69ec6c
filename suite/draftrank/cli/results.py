"""The results a command shows: the local store and the published bundles, merged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from draftrank.catalog.workspace import Workspace

if TYPE_CHECKING:
    from draftrank.measure.records import SessionResult
    from draftrank.store.archive import Archive


@contextmanager
def open_archive(workspace: Workspace, *, local: bool = True, published: bool = True) -> Iterator[Archive]:
    """Every session that the workspace knows of, but for those of the store or the published ones where so asked."""
    from draftrank.store.archive import Archive
    from draftrank.store.derived import Derived

    folder = workspace.published if published else None
    places = (workspace.published_parities, workspace.published_serving) if published else (None, None)
    with Derived(workspace.state / "derived.sqlite") as derived:
        if not local or not workspace.has_store:
            yield Archive(None, folder, derived, *places)
        elif workspace.has_local_store:
            file = Path(workspace.store_url.removeprefix("sqlite:///"))
            yield Archive(file, folder, derived, *places)
        else:
            from draftrank.store.store import Store

            with Store.open(workspace.store_url) as store:
                yield Archive(store, folder, derived, *places)


def read_results(workspace: Workspace) -> tuple[SessionResult, ...]:
    """All these sessions with their trials, oldest first."""
    with open_archive(workspace) as archive:
        return tuple(map(archive.result, archive.sessions))


def require_known(workspace: Workspace, *, target: str | None = None, suite: str | None = None) -> None:
    """For a selection that found no result: refuses names that are not declared either.

    Raises:
        InvalidInputError: the target or the suite is unknown, which is another thing than unmeasured.
    """
    if target is not None:
        workspace.target(target)
    if suite is not None:
        workspace.suite(suite)
