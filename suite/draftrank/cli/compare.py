"""`draftrank compare`: two drafts against each other."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from draftrank.cli.options import JsonOption, TargetOption, WorkspaceOption
from draftrank.cli.output import print_json

if TYPE_CHECKING:
    from draftrank.measure.records import SessionResult
    from draftrank.store.archive import Archive, Known


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
    from draftrank.cli.results import open_archive, require_known
    from draftrank.cli.tables import print_comparison
    from draftrank.errors import InvalidInputError
    from draftrank.measure.gates.verdict import judge
    from draftrank.measure.statistics.comparing import SpeedRatio
    from draftrank.measure.statistics.comparing import compare as compare_arms
    from draftrank.measure.summaries.summary import summarise

    opened = Workspace.open(workspace)
    with open_archive(opened) as archive:
        if not any(target in (None, known.target) for known in archive.sessions):
            require_known(opened, target=target)
        newest_first = [
            known
            for known in reversed(archive.sessions)
            if target in (None, known.target) and session in (None, known.id)
        ]
        if session is not None and not newest_first:
            raise InvalidInputError.single(
                f"there is no session {session!r}" + (f" of {target}" if target else ""),
                field="--session",
                fix="`draftrank show` lists sessions",
            )
        result = _newest_with(archive, newest_first, {first, second})
        results = [result] if result else [archive.result(known) for known in newest_first]
    found = compare_arms(results, first, second)
    summary = summarise(results[0])
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


def _newest_with(archive: Archive, newest_first: list[Known], arms: set[str]) -> SessionResult | None:
    """The first session that holds trials of all these arms; None when none does."""
    from draftrank.measure.statistics.standing import standing_trials

    for known in newest_first:
        if arms <= known.arms:
            result = archive.result(known)
            if arms <= {trial.arm for trial in standing_trials(result.trials)}:
                return result
    return None
