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
    from draftrank.catalog.workspace import Workspace
    from draftrank.cli.results import read_results, require_known
    from draftrank.cli.session_facts import print_session
    from draftrank.cli.tables import print_arm, print_sessions
    from draftrank.errors import InvalidInputError
    from draftrank.measure.gates.verdict import judge
    from draftrank.measure.summaries.summary import summarise

    opened = Workspace.open(workspace)
    results = [result for result in read_results(opened) if target in (None, result.session.target)]
    if not results:
        require_known(opened, target=target)
    results.sort(key=lambda result: result.session.created_at, reverse=True)
    if name is None:
        summaries = [summarise(result) for result in results]
        print_sessions(summaries)
        if json:
            print_json({"sessions": [summary.session.model_dump(mode="json") for summary in summaries]})
        return
    chosen = next((result for result in results if result.session.id == name), None)
    arms = None
    if chosen is None:
        chosen = next((result for result in results if name in {arm.id for arm in result.session.arms}), None)
        arms = [name]
    if chosen is None:
        raise InvalidInputError.single(
            f"no result is called {name!r}",
            fix="`draftrank show` lists sessions, `draftrank list` the drafts; measure one with `draftrank run`",
        )
    summary = summarise(chosen)
    if arms is None:
        print_session(summary)
    shown: list[dict[str, Any]] = []
    for arm in summary.arms:
        if arms is not None and arm.arm.id not in arms:
            continue
        reason = judge(summary, arm).reason if arm.arm.kind == "draft" else None
        print_arm(summary, arm, reason)
        shown.append({**asdict(arm), "arm": arm.arm.model_dump(mode="json"), "reason": reason})
    if json:
        print_json(
            {
                "session": summary.session.model_dump(mode="json"),
                "arms": shown,
                "stability": asdict(summary.stability),
                "precision_reached": summary.precision_reached,
            }
        )
