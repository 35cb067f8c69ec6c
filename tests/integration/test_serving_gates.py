"""Every fault of a real server process ends as a flagged or failed arm of its board, never as a ranked row."""

from __future__ import annotations

import pytest

from draftrank.board.serving_ranking import build_serving_boards
from draftrank.catalog.workspace import Workspace
from draftrank.store.store import Store
from draftrank.workflows.serve_bench import ServeRequest, serve_bench
from serving_workspace import declare_method, declare_server, engine

OF_TIME = {"unstable", "noisy", "disturbed", "throttled", "client-bound", "implausible-speedup"}
"""Gates that a machine which tests share may fail."""
FAULTS = {
    "wrong counts": {"contradictory-counts"},
    "dies after 30": {"failed"},
    "resets counters after 30": {"restarted"},
    "hangs after 30": {"failed", "failed-requests"},
    "cut after 30": {"failed", "failed-requests"},
    "no end after 30": {"failed", "failed-requests"},
    "wrong model": {"failed"},
    "ends at once": {"failed"},
    "parts": {"not-lossless"},
}


@pytest.fixture
def board(workspace_root, monkeypatch):
    """The board of a session in which the n-gram draft's server has a fault."""
    declare_server(workspace_root)
    declare_method(workspace_root)
    monkeypatch.setenv("DRAFTRANK_WATCH", "off")
    monkeypatch.setenv("DRAFTRANK_OFFLINE", "1")

    def measured(fault: str = ""):
        for name, value in engine(workspace_root, fault, "ngram").items():
            monkeypatch.setenv(name, value)
        workspace = Workspace.open(workspace_root)
        asked = ServeRequest(
            "tiny", "toy", drafts=("ngram", "method"), concurrencies=(1, 2), rounds=4, idle_s=0.5
        )
        with Store.open(workspace.store_url) as store:
            (found,) = build_serving_boards([serve_bench(workspace, asked, store)])
        return {row.draft: row for row in found.rows}

    return measured


def test_an_honest_session_fails_no_gate_but_those_of_time(board):
    for row in board().values():
        for cell in row.best.values():
            assert set(cell.gates) <= OF_TIME, cell.reason
            assert cell.acceptance_length is not None
            assert cell.output == "identical"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_never_ranked(board, fault):
    rows = board(fault)
    assert not rows["ngram"].ranked
    assert FAULTS[fault] & {gate for cell in rows["ngram"].best.values() for gate in cell.gates}
    for cell in rows["method"].best.values():
        assert set(cell.gates) <= OF_TIME, cell.reason
