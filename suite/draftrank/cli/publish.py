"""`draftrank publish`: a session's results as files to review and commit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from draftrank.cli.options import JsonOption, WorkspaceOption
from draftrank.cli.output import out, print_json

R = TypeVar("R")


def publish(
    session: Annotated[
        str | None,
        typer.Argument(
            help="Session, parity record or serving session to publish. Default: the newest finished session of `run` or `sweep`.",
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
    """Write a session's results as a bundle into leaderboard/results/; drafts that are published already are left out. Parity
    records go to leaderboard/parity/, serving sessions to leaderboard/serving/.

    [bold]Example:[/bold] draftrank publish
    """
    from draftrank.board.reproduce import explores
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
            kind, published, home = "parity", parity.id, opened.published_parities
            write = _alone(PARITY_FILES.publish, parity)
        elif serving is not None:
            if serving.finished_at is None:
                raise InvalidInputError.single(
                    f"the serving session {serving.id} is not finished",
                    fix="the same `draftrank serve-bench` resumes it",
                )
            kind, published, home = "serving", serving.id, opened.published_serving
            write = _alone(SERVING_FILES.publish, store.serving.result(serving.id))
        else:
            finished = [one for one in store.sessions() if one.finished_at is not None]
            chosen = [
                one for one in finished if (not explores(one.suite) if session is None else one.id == session)
            ]
            if not chosen and finished and session is None:
                raise InvalidInputError.single(
                    "every finished session is of `tune-k` or `search`: "
                    + ", ".join(one.id for one in finished),
                    fix="measure the drafts with `draftrank run`, or name a session",
                )
            if not chosen:
                raise InvalidInputError.single(
                    f"there is no finished session {session or ''}".rstrip(),
                    fix="`draftrank show` lists sessions; the same `draftrank run` resumes an unfinished one",
                )
            published = max(chosen, key=lambda one: one.created_at).id
            kind, home = "session", opened.published
            result = store.result(published)
            require_times(result, f"session {published}")
            write = partial(publish_bundles, result)
        written = [str(path) for path in write(home)] if to is None else put_bundles(write, to)
    for path in written:
        out.print(f"written: {path if to else opened.display(Path(path))}")
    if json:
        print_json({kind: published, "files": written})


def _alone(publish_record: Callable[[R, Path], Path], record: R) -> Callable[[Path], list[Path]]:
    """What writes a record's only file below a folder."""
    return lambda folder: [publish_record(record, folder)]
