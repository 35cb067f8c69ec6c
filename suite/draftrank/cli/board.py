"""`draftrank board`: the ranking in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

from draftrank.cli.options import JsonOption, SuiteFilter, TargetOption, WorkspaceOption
from draftrank.cli.output import out, print_json


def board(
    target: TargetOption = None,
    suite: SuiteFilter = None,
    published: Annotated[
        bool, typer.Option("--published", help="Only the published bundles, not the local store.")
    ] = False,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Print every board of the local store and the published bundles: first this machine's, the fastest backend's
    first, and archived ones last; then the boards of servers.

    [bold]Example:[/bold] draftrank board --target smollm2-135m-instruct --suite quick
    """
    from draftrank.board.archived import archived_boards, archived_servings, shown_boards
    from draftrank.board.as_json import board_document, serving_document
    from draftrank.board.earlier import mark_earlier
    from draftrank.board.order import in_order
    from draftrank.catalog.workspace import Workspace
    from draftrank.cli.results import open_archive, require_known
    from draftrank.cli.serving_tables import print_serving_board
    from draftrank.cli.tables import print_board
    from draftrank.measure.machine.fingerprint import is_this_machine

    opened = Workspace.open(workspace)
    with open_archive(opened, local=not published) as archive:
        found_in = archived_boards if json else shown_boards
        found = in_order(found_in(archive, target, suite), is_this_machine)
        served = archived_servings(archive, target, suite)
    boards, servings = mark_earlier(found, served)
    for board in boards:
        print_board(board)
    for serving in servings:
        print_serving_board(serving)
    if not boards and not servings:
        require_known(opened, target=target, suite=suite)
        out.print("no results yet: start with `draftrank run`")
    if json:
        print_json(board_document(boards) | {"servings": serving_document(servings)})
