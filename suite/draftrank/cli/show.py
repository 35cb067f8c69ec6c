"""`draftrank show`: the numbers of one draft or one session."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from draftrank.cli.options import JsonOption, TargetOption, WorkspaceOption
from draftrank.cli.output import print_json


def show(
    name: Annotated[
        str | None,
        typer.Argument(help="A draft's id or a session's. Default: list the sessions.", show_default=False),
    ] = None,
    target: TargetOption = None,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Show every figure of a draft in its newest session, or of a session: its machine and all its arms.

    [bold]Example:[/bold] draftrank show ngram --target smollm2-135m-instruct
    """
    from draftrank.board.archived import archived_rows
    from draftrank.board.remarks import remarks_on
    from draftrank.catalog.workspace import Workspace
    from draftrank.cli.results import open_archive, require_known
    from draftrank.cli.session_facts import print_session
    from draftrank.cli.tables import print_arm, print_sessions
    from draftrank.errors import InvalidInputError
    from draftrank.measure.gates.verdict import judge
    from draftrank.measure.summaries.summary import summarise

    opened = Workspace.open(workspace)
    with open_archive(opened) as archive:
        newest_first = sorted(
            (known for known in archive.sessions if target in (None, known.target)),
            key=lambda known: known.created_at,
            reverse=True,
        )
        if not newest_first:
            require_known(opened, target=target)
        if name is None:
            sessions = [rows.session.record for rows in archived_rows(archive, newest_first)]
            print_sessions(sessions)
            if json:
                print_json({"sessions": [session.model_dump(mode="json") for session in sessions]})
            return
        chosen = next((known for known in newest_first if known.id == name), None)
        arms = None
        if chosen is None:
            chosen = next((known for known in newest_first if name in known.arms), None)
            arms = [name]
        if chosen is None:
            raise InvalidInputError.single(
                f"no result is called {name!r}",
                fix="`draftrank show` lists sessions, `draftrank list` the drafts; measure one with `draftrank run`",
            )
        if arms is not None and not json:
            (rows,) = archived_rows(archive, [chosen])  # quicker than its trials
            if row := next((row for row in rows.rows if row.draft == name), None):
                print_arm(row.session, row.summary, row.remarks, row.reason)
                return
        summary = summarise(archive.result(chosen))
    if arms is None:
        print_session(summary)
    shown: list[dict[str, Any]] = []
    for arm in summary.arms:
        if arms is not None and arm.arm.id not in arms:
            continue
        reason = judge(summary, arm).reason if arm.arm.kind == "draft" else None
        print_arm(summary.session.id, arm, remarks_on(summary, arm), reason)
        shown.append({**asdict(arm), "arm": arm.arm.model_dump(mode="json"), "reason": reason})
    if json:
        print_json(
            {
                "session": summary.session.model_dump(mode="json"),
                "arms": shown,
                "stability": asdict(summary.stability),
                "ci_reached": summary.ci_reached,
            }
        )
