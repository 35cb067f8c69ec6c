"""Sessions whose short forwards run in few calls."""

from __future__ import annotations

import json

from commands import several
from conftest import write_tiny_workspace
from draftrank import RunRequest, Store, Workspace, build_boards, run, summarise
from draftrank.board.reproduce import reproduce_command
from workspaces import RECIPE


def test_every_kind_of_draft_is_lossless_and_has_a_board_apart(workspace_root):
    workspace = Workspace.open(workspace_root)
    with Store.open(workspace.store_url) as store:
        plain = run(workspace, RunRequest("tiny"), store)
        fused = run(workspace, RunRequest("tiny", fused=True), store)
        assert run(workspace, RunRequest("tiny", fused=True), store) == fused
    assert fused.session.id != plain.session.id
    assert (plain.session.runtime, fused.session.runtime) == ("torch-eager", "torch-fused")
    assert [arm.failure for arm in fused.session.arms] == [None] * len(fused.session.arms)
    for arm in summarise(fused).arms:
        if arm.arm.kind == "draft":
            assert arm.fidelity.status == "identical"
    outputs = {
        (trial.prompt, trial.turn): trial.token_ids for trial in plain.trials if trial.arm == "baseline"
    }
    assert all(trial.token_ids == outputs[trial.prompt, trial.turn] for trial in fused.trials)
    assert len(build_boards([plain, fused])) == 2
    assert "--fused" in reproduce_command(fused.session, "ngram").split()
    assert "--fused" not in reproduce_command(plain.session, "ngram")


def test_what_cannot_be_fused_is_said(tmp_path):
    root = write_tiny_workspace(tmp_path / "workspace", "gpt2")
    unknown, gguf = several(
        root,
        ["run", "tiny", "--draft", "ngram", "--fused"],
        ["run", "tiny", "--draft", "ngram", "--fused", "--dtype", "gguf"],
    )
    assert (unknown.code, gguf.code) == (2, 2)
    assert "the forward of tiny (gpt2) is not known in few calls" in unknown.err
    assert "leave it out, or use --dtype bf16" in gguf.err


def test_a_fused_board_is_printed_with_its_runtime(workspace_root):
    (workspace_root / "drafts" / "tiny" / "ngram.yaml").write_text(RECIPE)
    (found,) = several(workspace_root, ["run", "tiny", "--draft", "ngram", "--fused", "--json"])
    assert found.code == 0, found.err
    (board,) = json.loads(found.out.splitlines()[-1])["boards"]
    assert board["runtime"] == "torch-fused"
