"""`draftrank changed`: what a branch changes and must measure."""

from __future__ import annotations

from dataclasses import asdict

from draftrank.cli.options import JsonOption, SinceOption, WorkspaceOption
from draftrank.cli.output import out, print_json


def changed(since: SinceOption = "main", json: JsonOption = False, workspace: WorkspaceOption = None) -> None:
    """List the drafts that this branch must measure, and check that it changes no published result.

    Declarations are compared by content with the commit where the branch began. A reworded description
    changes nothing.

    [bold]Example:[/bold] draftrank changed --since origin/main
    """
    from draftrank.catalog.workspace import Workspace
    from draftrank.workflows.changed import changes_since

    opened = Workspace.open(workspace)
    found = changes_since(opened, since)
    declared = found.declared
    for one in declared.to_measure:
        out.print(f"to measure: {one.target} {one.draft}, {one.reason}")
    for target, draft in declared.removed:
        out.print(f"removed: {target} {draft}")
    for what, names in (("target", declared.targets), ("task", declared.tasks), ("suite", declared.suites)):
        for name in names:
            out.print(f"changed {what}: {name}")
    bundles = [opened.display(path) for path in found.bundles]
    for bundle in bundles:
        out.print(f"result: {bundle}")
    if not (declared.to_measure or declared.removed or declared.tasks or declared.suites or bundles):
        out.print(f"nothing that is measured differs from {found.base[:12]}")
    if json:
        print_json({"base": found.base, **asdict(declared), "bundles": bundles})
