"""`draftrank publish`: a session's results as files to review and commit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from draftrank.cli.options import JsonOption, WorkspaceOption
from draftrank.cli.output import out, print_json


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
    from draftrank.store.parity_bundle import PARITY_FILES
    from draftrank.store.serving_bundle import SERVING_FILES
    from draftrank.store.shared_bundles import put_bundles
    from draftrank.store.store import Store

    opened = Workspace.open(workspace)
    if to is None:
        opened.require_own()
    with Store.open(opened.store_url) as store:
        parity = next((one for one in store.parities() if one.id == session), None)
        serving = next((one for one in store.serving.sessions() if one.id == session), None)
        if parity is not None:
            kind, published = "parity", parity.id
            written = [str(PARITY_FILES.publish(parity, Path(to) if to else opened.published_parities))]
        elif serving is not None:
            if serving.finished_at is None:
                raise InvalidInputError.single(
                    f"the serving session {serving.id} is not finished",
                    fix="the same `draftrank serve-bench` resumes it",
                )
            kind, published = "serving", serving.id
            folder = Path(to) if to else opened.published_serving
            written = [str(SERVING_FILES.publish(store.serving.result(serving.id), folder))]
        else:
            finished = [one for one in store.sessions() if one.finished_at is not None]
            chosen = [one for one in finished if session in (None, one.id)]
            if not chosen:
                raise InvalidInputError.single(
                    f"there is no finished session {session or ''}".rstrip(),
                    fix="`draftrank show` lists sessions; the same `draftrank run` resumes an unfinished one",
                )
            kind, published = "session", max(chosen, key=lambda one: one.created_at).id
            result = store.result(published)
            require_times(result, f"session {published}")
            if to is None:
                written = [str(path) for path in publish_bundles(result, opened.published)]
            else:
                written = put_bundles(result, to)
    for path in written:
        out.print(f"written: {path if to else opened.display(Path(path))}")
    if json:
        print_json({kind: published, "files": written})
