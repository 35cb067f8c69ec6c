"""Sessions whose forwards run in few calls, or in our own kernels."""

from __future__ import annotations

import json

import pytest

from commands import several
from draftrank import RunRequest, Store, Workspace, build_boards, run, summarise
from draftrank.board.reproduce import reproduce_command
from tiny_workspace import write_tiny_workspace
from workspaces import RECIPE


@pytest.mark.parametrize("forward", ["fused", "native"])
def test_every_kind_of_draft_is_lossless_and_has_a_board_apart(workspace_root, forward):
    workspace = Workspace.open(workspace_root)
    with Store.open(workspace.store_url) as store:
        plain = run(workspace, RunRequest("tiny"), store)
        fused = run(workspace, RunRequest("tiny", forward=forward), store)
        assert run(workspace, RunRequest("tiny", forward=forward), store) == fused
    assert fused.session.id != plain.session.id
    assert (plain.session.runtime, fused.session.runtime) == ("torch-eager", f"torch-{forward}")
    assert [arm.failure for arm in fused.session.arms] == [None] * len(fused.session.arms)
    for arm in summarise(fused).arms:
        if arm.arm.kind == "draft":
            assert arm.fidelity.status == "identical"
    outputs = {
        (trial.prompt, trial.turn): trial.token_ids for trial in plain.trials if trial.arm == "baseline"
    }
    assert all(trial.token_ids == outputs[trial.prompt, trial.turn] for trial in fused.trials)
    assert len(build_boards([plain, fused])) == 2
    assert f"--{forward}" in reproduce_command(fused.session, "ngram").split()
    assert f"--{forward}" not in reproduce_command(plain.session, "ngram")


def test_what_cannot_be_fused_is_said(tmp_path):
    root = write_tiny_workspace(tmp_path / "workspace", "gpt2")
    unknown, gguf, kernels, both, no_gpu, three = several(
        root,
        ["run", "tiny", "--draft", "ngram", "--fused"],
        ["run", "tiny", "--draft", "ngram", "--fused", "--dtype", "gguf"],
        ["run", "tiny", "--draft", "ngram", "--native"],
        ["run", "tiny", "--draft", "ngram", "--native", "--fused"],
        ["run", "tiny", "--draft", "ngram", "--captured"],
        ["run", "tiny", "--draft", "ngram", "--captured", "--native", "--fused"],
    )
    assert {found.code for found in (unknown, gguf, kernels, both, no_gpu, three)} == {2}
    assert "the forward of tiny (gpt2) is not known in few calls" in unknown.err
    assert "the forward of tiny (gpt2) is not known in kernels of our own" in kernels.err
    assert "a forward is either fused or native" in both.err
    assert "leave all but one of --fused, --native out" in both.err
    assert "leave all but one of --fused, --native, --captured out" in three.err
    assert "CUDA graphs are captured on a GPU" in no_gpu.err
    assert "add --device cuda, or leave it out" in no_gpu.err
    assert "leave it out, or use --dtype bf16" in gguf.err


@pytest.mark.parametrize("forward", ["fused", "native"])
def test_a_board_is_printed_with_its_runtime(workspace_root, forward):
    (workspace_root / "drafts" / "tiny" / "ngram.yaml").write_text(RECIPE)
    (found,) = several(workspace_root, ["run", "tiny", "--draft", "ngram", f"--{forward}", "--json"])
    assert found.code == 0, found.err
    (board,) = json.loads(found.out.splitlines()[-1])["boards"]
    assert board["runtime"] == f"torch-{forward}"
