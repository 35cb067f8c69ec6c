"""`draftrank compare`: two drafts against each other."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from draftrank.cli.options import JsonOption, TargetOption, WorkspaceOption
from draftrank.cli.output import print_json


def compare(
    first: Annotated[str, typer.Argument(help="A draft's id, or `baseline`.", metavar="A")],
    second: Annotated[str, typer.Argument(help="Another draft's id, or `baseline`.", metavar="B")],
    target: TargetOption = None,
    session: Annotated[
        str | None,
        typer.Option("--session", help="Use this session instead of the newest one with both.", metavar="ID"),
    ] = None,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Say whether draft A is faster than draft B, by how much and how surely, from a session that has both.

    [bold]Example:[/bold] draftrank compare ngram int8-dynamic --target smollm2-135m-instruct
    """
    from draftrank.catalog.workspace import Workspace
    from draftrank.cli.results import read_results, require_known
    from draftrank.cli.tables import print_comparison
    from draftrank.measure.gates.verdict import judge
    from draftrank.measure.statistics.comparing import SpeedRatio
    from draftrank.measure.statistics.comparing import compare as compare_arms
    from draftrank.measure.summaries.summary import summarise

    opened = Workspace.open(workspace)
    results = read_results(opened)
    if not any(target in (None, result.session.target) for result in results):
        require_known(opened, target=target)
    found = compare_arms(results, first, second, target=target, session=session)
    of_session = [result for result in results if result.session.id == found.session.id]
    summary = summarise(max(of_session, key=lambda result: len(result.trials)))
    cautions = {
        arm.arm.id: reason
        for arm in summary.arms
        if arm.arm.id in (first, second)
        and arm.arm.kind == "draft"
        and (reason := judge(summary, arm).reason) is not None
    }
    print_comparison(found, cautions)
    if not json:
        return

    def plain(ratio: SpeedRatio) -> dict[str, Any]:
        return {**asdict(ratio), "answer": ratio.answer}

    print_json(
        {
            "session": found.session.id,
            "target": found.session.target,
            "first": first,
            "second": second,
            "overall": plain(found.overall) if found.overall else None,
            "tasks": {task: plain(ratio) for task, ratio in found.tasks.items()},
            "cells": found.cells,
            "cautions": cautions,
        }
    )
