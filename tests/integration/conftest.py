"""A tiny workspace, fresh or measured."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from commands import Outcome, draftrank, time_forwards_briefly
from draftrank.measure.gates.timeline import timeline_problems
from draftrank.store.store import Store
from tiny_workspace import write_tiny_workspace


@pytest.fixture(scope="module", autouse=True)
def _brief_timing():
    with pytest.MonkeyPatch.context() as patch:
        time_forwards_briefly(patch.setattr)
        yield


@pytest.fixture
def workspace_root(tmp_path) -> Path:
    return write_tiny_workspace(tmp_path / "workspace")


@pytest.fixture(scope="session")
def measured(tmp_path_factory) -> tuple[Path, Outcome]:
    """A canonical workspace on which `draftrank run` was called once, and what that gave. Not to be changed."""
    root = write_tiny_workspace(tmp_path_factory.mktemp("measured") / "workspace")
    assert draftrank(root, "check", "--fix").code == 0
    store = root / ".draftrank" / "results.sqlite"
    for _ in range(5):
        for path in store.parent.glob("results.sqlite*"):
            path.unlink()
        ran = draftrank(root, "run", "--json")
        with Store.open(store) as opened:
            if not timeline_problems(opened.result(ran.json["session"])):
                break  # else other work on this machine left holes between trials, with which nothing is published
    return root, ran


@pytest.fixture
def measured_root(measured, tmp_path) -> Path:
    """A copy of the measured workspace to change."""
    return Path(shutil.copytree(measured[0], tmp_path / "workspace"))
