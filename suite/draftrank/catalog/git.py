"""git, asked so that no configuration of the repository at hand can start a program of its choice."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from draftrank.errors import InvalidInputError

_PATIENCE_S = 60.0
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./@{}^~-]{0,200}")


def git(folder: Path, *arguments: str) -> str | None:
    """What git prints, without blank ends; None where it fails, is not installed, or prints no text."""
    found = git_bytes(folder, *arguments)
    try:
        return None if found is None else found.decode().strip()
    except UnicodeDecodeError:
        return None


def git_bytes(folder: Path, *arguments: str) -> bytes | None:
    """What git prints, as it is; None where it fails or is not installed."""
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    # Variables of a git hook that calls this would point at another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PATIENCE_S, check=False, env=environment)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def commit_of(folder: Path, revision: str) -> str:
    """The full hash of a commit.

    Raises:
        InvalidInputError: the folder's repository has no such revision.
    """
    found = (
        git(folder, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
        if _REVISION.fullmatch(revision)
        else None
    )
    if not found:
        raise InvalidInputError.single(
            f"git knows no revision {revision!r} here",
            file=str(folder),
            fix="name a branch or a commit, and fetch it first (a clone without history does not have it)",
        )
    return found
