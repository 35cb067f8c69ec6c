"""From a measured draft to what its pull request needs: the bundle, and the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from draftrank.board.pull_request import Standing, markdown, standings
from draftrank.board.reproduce import explores, named_suite
from draftrank.building.kept_files import kept_files
from draftrank.catalog.git import git_bytes
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.sources.local import LocalSource
from draftrank.catalog.workspace import Workspace
from draftrank.errors import InvalidInputError
from draftrank.measure.records import Session, SessionResult
from draftrank.store.bundle import publish
from draftrank.store.bundle_checks import require_times
from draftrank.store.store import Store
from draftrank.workflows.challenge import FIRST_INCUMBENT

_CHECKLIST = """\
- [ ] The recipe is mine to submit, under this repository's licence.
- [ ] It was not trained on the prompts of `tasks/`, nor on answers to them.
- [ ] The bundles are as `draftrank submit` wrote them.
"""


@dataclass(frozen=True, slots=True)
class Submission:
    """What goes into the pull request."""

    recipe: tuple[Path, ...]
    """The recipe's file, the corpora that it needs, and what is kept of its draft."""
    declared: tuple[Path, ...]
    """What declares the target, the suite and the tasks of the session, as far as it is not committed."""
    bundles: tuple[Path, ...]
    title: str
    """The pull request's title."""
    text: str
    """Its description, in Markdown."""


def submit(
    workspace: Workspace, target: str, draft: str, store: Store, *, session: str | None = None
) -> Submission:
    """Checks a draft's recipe, publishes its newest finished result of a run or a sweep, and words the pull request.

    Args:
        session: publish this session's result, not the newest.

    Raises:
        InvalidInputError: the recipe is invalid, nothing was measured with the recipe as it is now, or what was
            has times that contradict each other.
    """
    workspace.require_own()
    recipe = workspace.recipe(target, draft)
    path = workspace.root / "drafts" / target / f"{draft}.yaml"
    problems = workspace.check([path]).problems
    if problems:
        raise InvalidInputError(problems)
    result = _measured(workspace, recipe, store, session)
    require_times(result, f"session {result.session.id}")
    kept = kept_files(recipe.draft, result.session.target_weights_sha256, path.parent)
    written = publish(result, workspace.published, drafts=(draft,))
    told = standings([result], drafts=[draft])
    return Submission(
        (*workspace.files_of_recipe(target, draft), *kept),
        _not_committed(workspace.root, tuple(_declarations(workspace, result.session))),
        tuple(written),
        f"Draft for {target}: {draft}",
        _text(recipe, told[0][1][0] if told else None, markdown(told)),
    )


def _measured(workspace: Workspace, recipe: Recipe, store: Store, session: str | None) -> SessionResult:
    wanted = recipe.content_sha256()
    found = [
        one
        for one in store.sessions()
        if one.target == recipe.target
        and one.finished_at is not None
        and session in (None, one.id)
        and any(arm.id == recipe.id and arm.draft and arm.draft.recipe_sha256 == wanted for arm in one.arms)
    ]
    chosen = [one for one in found if session is not None or not explores(one.suite)]
    if not chosen:
        search = f" but for {', '.join(one.id for one in found)} of `draftrank search`" if found else ""
        raise InvalidInputError.single(
            f"no finished session{f' {session}' if session else ''} measured this recipe as it is now{search}",
            file=f"drafts/{recipe.target}/{recipe.id}.yaml",
            fix=f"measure it: {_how_to_measure(workspace, recipe)}",
        )
    return store.result(max(chosen, key=lambda one: (one.created_at, one.id)).id)


def _how_to_measure(workspace: Workspace, recipe: Recipe) -> str:
    """The command, on the suite `core` and beside n-grams, where the workspace has these."""
    suite = " --suite core" if (workspace.root / "tasks" / "suites" / "core.yaml").is_file() else ""
    known = {path.stem for path in workspace.recipe_paths(recipe.target)}
    beside = "".join(f" --draft {one}" for one in sorted({FIRST_INCUMBENT} & known - {recipe.id}))
    return f"draftrank run {recipe.target}{suite} --draft {recipe.id}{beside}"


def _declarations(workspace: Workspace, session: Session) -> Iterator[Path]:
    """The files that are there of a session's target, suite and tasks, with the prompts that the workspace holds."""
    tasks = workspace.root / "tasks"
    yield workspace.root / "drafts" / session.target / "target.yaml"
    names = {task.task for task in session.tasks}
    suite = named_suite(session.suite)
    if (path := tasks / "suites" / f"{suite}.yaml").is_file():
        yield path
        names |= {entry.task for entry in workspace.suite(suite).tasks}
    for name in sorted(names):
        if (path := tasks / f"{name}.yaml").is_file():
            yield path
            source = workspace.task(name).source
            if isinstance(source, LocalSource) and (path := workspace.root / source.path).is_file():
                yield path


def _not_committed(root: Path, paths: Sequence[Path]) -> tuple[Path, ...]:
    """Those that git does not have as they are; all of them where there is no repository."""
    names = [path.relative_to(root).as_posix() for path in paths]
    changed = git_bytes(root, "diff", "--name-only", "--relative", "-z", "HEAD", "--", *names)
    unknown = git_bytes(root, "ls-files", "--others", "-z", "--", *names)
    if changed is None or unknown is None:
        return tuple(paths)
    told = {name.decode(errors="replace") for name in (changed + unknown).split(b"\0")}
    return tuple(path for path, name in zip(paths, names, strict=True) if name in told)


def _text(recipe: Recipe, standing: Standing | None, table: str) -> str:
    reason = standing.row.reason if standing else None
    parts = [
        recipe.description or recipe.title,
        "",
        table.rstrip(),
        "",
        *([f"It is not ranked: {reason}", ""] if reason else []),
        _CHECKLIST.rstrip(),
    ]
    return "\n".join(parts) + "\n"
