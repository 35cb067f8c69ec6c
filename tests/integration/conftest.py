"""A tiny workspace, fresh or measured."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from commands import Outcome, draftrank
from tiny_workspace import write_tiny_workspace


@pytest.fixture
def workspace_root(tmp_path) -> Path:
    return write_tiny_workspace(tmp_path / "workspace")


@pytest.fixture(scope="session")
def measured(tmp_path_factory) -> tuple[Path, Outcome]:
    """A canonical workspace on which `draftrank run` was called once, and what that gave. Not to be changed."""
    root = write_tiny_workspace(tmp_path_factory.mktemp("measured") / "workspace")
    assert draftrank(root, "check", "--fix").code == 0
    return root, draftrank(root, "run", "--json")


@pytest.fixture
def measured_root(measured, tmp_path) -> Path:
    """A copy of the measured workspace to change."""
    return Path(shutil.copytree(measured[0], tmp_path / "workspace"))
