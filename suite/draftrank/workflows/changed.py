"""What a branch changes: which drafts it must measure, which results it brings, what it may not touch."""

from __future__ import annotations

import io
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from draftrank.catalog.changes import Changes, compare_workspaces
from draftrank.catalog.git import commit_of, git, git_bytes
from draftrank.catalog.workspace import Checked, Workspace
from draftrank.errors import InvalidInputError, Problem

_DECLARED = ("drafts", "tasks")
_NOTHING = Checked((), (), (), (), (), (), ())


@dataclass(frozen=True, slots=True)
class BranchChanges:
    """A branch against what it started from."""

    base: str
    """Commit where the branch left the other one."""
    declared: Changes
    bundles: tuple[Path, ...]
    """Result bundles that it adds, sorted."""


def changes_since(workspace: Workspace, revision: str) -> BranchChanges:
    """Compares the workspace as it lies there with the commit at which it left `revision`.

    Raises:
        InvalidInputError: there is no such revision, a declaration is invalid, or a published result was
            changed or removed; every problem is named.
    """
    root = workspace.root
    tip = commit_of(root, revision)
    base = git(root, "merge-base", tip, "HEAD")
    if not base:
        raise InvalidInputError.single(
            f"this branch has no commit in common with {revision!r}",
            file=str(root),
            fix="fetch more of its history",
        )
    after = workspace.check()
    bundles, touched = _bundle_changes(workspace, base)
    problems = [*after.problems, *touched]
    if problems:
        raise InvalidInputError(problems)
    return BranchChanges(base, compare_workspaces(_state_at(root, base), after), bundles)


def _state_at(root: Path, commit: str) -> Checked:
    """What was declared at a commit; what was wrong there counts as absent."""
    listed = (git(root, "ls-tree", "--name-only", commit, "--", *_DECLARED) or "").split("\n")
    present = [name for name in _DECLARED if name in listed]  # git archives nothing that is not there
    archive = git_bytes(root, "archive", "--format=tar", commit, "--", *present) if present else None
    if archive is None:
        return _NOTHING
    with tempfile.TemporaryDirectory(prefix="draftrank-base-") as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        for name in _DECLARED:
            (Path(folder) / name).mkdir(exist_ok=True)
        return Workspace.open(folder).check()


def _bundle_changes(workspace: Workspace, base: str) -> tuple[tuple[Path, ...], list[Problem]]:
    folders = [
        f"{path.relative_to(workspace.root).as_posix()}/"
        for path in (workspace.published, workspace.published_parities, workspace.published_serving)
    ]
    listed = git_bytes(
        workspace.root, "diff", "--relative", "--name-status", "--no-renames", "-z", base, "--", *folders
    )
    words = (listed or b"").decode(errors="replace").split("\0")
    added: list[Path] = []
    problems: list[Problem] = []
    for status, name in zip(words[::2], words[1::2], strict=False):
        if not name.endswith(".json"):
            continue
        if status == "A":
            path = workspace.root / name
            if path.is_relative_to(workspace.published):
                added.append(path)
        else:
            problems.append(
                Problem(
                    f"a published result was {'removed' if status == 'D' else 'changed'}",
                    name,
                    fix="restore it: results are only added, a newer one takes its place on the board",
                )
            )
    return tuple(sorted(added)), problems
