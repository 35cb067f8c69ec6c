"""`draftrank publish`: a session's results as files to review and commit."""

from __future__ import annotations

from typing import Annotated

import typer

from draftrank.cli.options import JsonOption, WorkspaceOption
from draftrank.cli.output import out, print_json


def publish(
    session: Annotated[
        str | None,
        typer.Argument(help="Session to publish. Default: the newest finished one.", show_default=False),
    ] = None,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write one result bundle per draft of a session into leaderboard/results/.

    [bold]Example:[/bold] draftrank publish
    """
    from draftrank.catalog.workspace import Workspace
    from draftrank.errors import InvalidInputError
    from draftrank.store.bundle import publish as publish_bundles
    from draftrank.store.store import Store

    opened = Workspace.open(workspace)
    opened.require_own()
    with Store.open(opened.store_url) as store:
        finished = [one for one in store.sessions() if one.finished_at is not None]
        chosen = [one for one in finished if session in (None, one.id)]
        if not chosen:
            raise InvalidInputError.single(
                f"there is no finished session {session or ''}".rstrip(),
                fix="`draftrank show` lists sessions; an unfinished one goes on with the same `draftrank run`",
            )
        newest = max(chosen, key=lambda one: one.created_at)
        written = publish_bundles(store.result(newest.id), opened.published)
    for path in written:
        out.print(f"written: {opened.display(path)}")
    if json:
        print_json({"session": newest.id, "files": [str(path) for path in written]})
