"""`draftrank publish`: a session's results as files to review and commit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from draftrank.cli.options import JsonOption, WorkspaceOption
from draftrank.cli.output import out, print_json

if TYPE_CHECKING:
    from draftrank.catalog.workspace import Workspace
    from draftrank.measure.parity import Parity
    from draftrank.measure.serving_records import ServingSession
    from draftrank.store.store import Store


def publish(
    session: Annotated[
        str | None,
        typer.Argument(
            help="Session, parity record or serving session to publish. Default: the newest finished session.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            help="Write to this folder, or to an address that fsspec reaches, e.g. s3://bucket/results.",
            metavar="ADDRESS",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write a session's results as a bundle into leaderboard/results/; drafts that are published already are left out.

    [bold]Example:[/bold] draftrank publish
    """
    from draftrank.catalog.workspace import Workspace
    from draftrank.errors import InvalidInputError
    from draftrank.store.bundle import publish as publish_bundles
    from draftrank.store.bundle_checks import require_times
    from draftrank.store.shared_bundles import put_bundles
    from draftrank.store.store import Store

    opened = Workspace.open(workspace)
    if to is None:
        opened.require_own()
    with Store.open(opened.store_url) as store:
        for parity in store.parities():
            if parity.id == session:
                _publish_parity(opened, parity, to, json)
                return
        for serving in store.serving.sessions():
            if serving.id == session:
                _publish_serving(opened, store, serving, to, json)
                return
        finished = [one for one in store.sessions() if one.finished_at is not None]
        chosen = [one for one in finished if session in (None, one.id)]
        if not chosen:
            raise InvalidInputError.single(
                f"there is no finished session {session or ''}".rstrip(),
                fix="`draftrank show` lists sessions; the same `draftrank run` resumes an unfinished one",
            )
        newest = max(chosen, key=lambda one: one.created_at)
        result = store.result(newest.id)
    require_times(result, f"session {newest.id}")
    if to is None:
        written = [str(path) for path in publish_bundles(result, opened.published)]
    else:
        written = put_bundles(result, to)
    for path in written:
        out.print(f"written: {path if to else opened.display(Path(path))}")
    if json:
        print_json({"session": newest.id, "files": written})


def _publish_parity(workspace: Workspace, parity: Parity, to: str | None, json: bool) -> None:
    from draftrank.store.parity_bundle import PARITY_FILES

    written = PARITY_FILES.publish(parity, Path(to) if to else workspace.published_parities)
    out.print(f"written: {written if to else workspace.display(written)}")
    if json:
        print_json({"parity": parity.id, "files": [str(written)]})


def _publish_serving(
    workspace: Workspace, store: Store, session: ServingSession, to: str | None, json: bool
) -> None:
    from draftrank.errors import InvalidInputError
    from draftrank.store.serving_bundle import SERVING_FILES

    if session.finished_at is None:
        raise InvalidInputError.single(
            f"the serving session {session.id} is not finished",
            fix="the same `draftrank serve-bench` resumes it",
        )
    result = store.serving.result(session.id)
    written = SERVING_FILES.publish(result, Path(to) if to else workspace.published_serving)
    out.print(f"written: {written if to else workspace.display(written)}")
    if json:
        print_json({"serving": session.id, "files": [str(written)]})
