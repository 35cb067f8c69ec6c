"""A tiny workspace, fresh or measured."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from commands import Outcome, be_brief, draftrank
from draftrank.measure.gates.timeline import timeline_problems
from draftrank.store.store import Store
from tiny_workspace import write_tiny_workspace


@pytest.fixture(scope="module", autouse=True)
def _brief():
    with pytest.MonkeyPatch.context() as patch:
        be_brief(patch.setattr)
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
    # What the site draws is kept beside the store, so that no test that renders it from a copy draws it again.
    assert draftrank(root, "site", "--out", str(tmp_path_factory.mktemp("site"))).code == 0
    return root, ran


@pytest.fixture
def measured_root(measured, tmp_path) -> Path:
    """A copy of the measured workspace to change."""
    return Path(shutil.copytree(measured[0], tmp_path / "workspace"))
