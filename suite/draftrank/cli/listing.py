"""`draftrank list`: what is declared and what can be declared."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from draftrank.catalog.architectures import ran_on_families
from draftrank.cli.options import JsonOption, TargetOption, WorkspaceOption
from draftrank.cli.output import out, print_json, print_problems, print_table

Kinds = Literal["steps", "proposers", "sources"]
What = Literal["drafts", "corpora", "targets", "tasks", "suites", "servers", Kinds, "architectures"]


def list_(
    what: Annotated[What, typer.Argument(help="What to list.")] = "drafts",
    target: TargetOption = None,
    json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """List drafts, corpora, targets, tasks, suites and servers, the kinds of steps, proposers and sources there are, or what runs
    on which family of models.

    [bold]Example:[/bold] draftrank list steps
    """
    rows: list[dict[str, Any]]
    if what in ("steps", "proposers", "sources"):
        rows = _kinds(what)
    elif what == "architectures":
        rows = _architectures()
    else:
        from draftrank.catalog.workspace import Workspace

        opened = Workspace.open(workspace)
        if target is not None:
            opened.target(target)  # refuses an unknown one
        checked = opened.check()
        print_problems(checked.problems)
        if what == "drafts":
            rows = [
                {
                    "target": recipe.target,
                    "draft": recipe.id,
                    "made_by": ", ".join(recipe.draft.techniques),
                    "k": recipe.speculate.num_speculative_tokens,
                    "effort": recipe.effort,
                    "title": recipe.title,
                }
                for recipe in checked.recipes
                if target in (None, recipe.target)
            ]
        elif what == "corpora":
            rows = [
                {
                    "target": one.target,
                    "corpus": one.id,
                    "tokens": one.text.tokens,
                    "sequence_tokens": one.text.sequence_tokens,
                    "description": one.description or "",
                }
                for one in checked.corpora
                if target in (None, one.target)
            ]
        elif what == "targets":
            rows = [
                {"target": one.id, "source": one.source.kind, "licence": one.licence, "title": one.title}  # type: ignore[attr-defined]
                for one in checked.targets
            ]
        elif what == "tasks":
            rows = [
                {
                    "task": one.id,
                    "source": one.source.kind,  # type: ignore[attr-defined]
                    "max_new_tokens": one.max_new_tokens,
                    "licence": one.licence,
                    "title": one.title,
                }
                for one in checked.tasks
            ]
        elif what == "servers":
            rows = [
                {
                    "server": one.id,
                    "engine": one.engine,
                    "dtype": one.dtype,
                    "max_requests": one.max_requests,
                    "runs": "already" if one.attach else "started",
                    "title": one.title,
                }
                for one in checked.servers
            ]
        else:
            rows = [
                {
                    "suite": one.id,
                    "tasks": ", ".join(
                        f"{entry.task} {entry.prompts if entry.prompts else '(all)'}" for entry in one.tasks
                    ),
                    "repeats": one.repeats,
                }
                for one in checked.suites
            ]
    _print_rows(rows)
    if json and what == "architectures":  # the reasons, too, which fill no table
        rows = [{"family": name, **cells} for name, cells in ran_on_families().items()]
    if json:
        print_json({what: rows})


def _kinds(what: Kinds) -> list[dict[str, Any]]:
    from draftrank import kinds

    table = {"steps": kinds.STEPS, "proposers": kinds.DRAFTS, "sources": kinds.SOURCES}[what]
    rows = []
    for kind, path in table.items():
        loaded = kinds.load_kind(path)
        knobs = [name for name in loaded.model_fields if name != "kind"]
        row = {"kind": kind, "meaning": (loaded.__doc__ or "").strip().splitlines()[0]}
        if what == "steps":
            row |= {"cost": loaded.cost, "architectures": loaded.architectures, "source": loaded.paper}
        rows.append({**row, "fields": ", ".join(knobs)})
    return rows


def _architectures() -> list[dict[str, Any]]:
    return [
        {
            "family": name,
            "runs": ", ".join(column for column, reason in cells.items() if reason is None),
            "does_not": ", ".join(column for column, reason in cells.items() if reason is not None),
        }
        for name, cells in ran_on_families().items()
    ]


def _print_rows(rows: list[dict[str, Any]]) -> None:
    if not rows:
        out.print("nothing declared")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    if out.is_terminal:
        out.print(table)  # long texts fold
    else:
        print_table(table)
