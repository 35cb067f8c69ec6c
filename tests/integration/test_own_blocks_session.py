"""Sessions of a GGUF target with the blocks of its file, in the backend cpp."""

from __future__ import annotations

import json

import gguf
import pytest

from commands import several
from draftrank import Workspace, summarise
from draftrank.board.ranking import build_boards
from draftrank.board.reproduce import reproduce_command
from draftrank.engine.backends.choice import fastest_dtype
from draftrank.errors import InvalidInputError
from draftrank.jobs.planning import plan_jobs
from draftrank.jobs.session import RunRequest, resolved
from gguf_files import write_llama_file
from models import save_small_target, small_model, small_tokenizer
from workspaces import run_drafts, write_draft, write_workspace

DRAFTS = {
    "shallow": "kind: draft_model\n  steps:\n    - {kind: drop_layers, keep: 2, select: ends}",
    "head": "kind: eagle\n  aux_hidden_states: [1, 2]",
    "exit": "kind: early_exit\n  layers: 2",
    "suffix": "kind: suffix",
}
KINDS = tuple(gguf.GGMLQuantizationType[name] for name in ("Q8_0", "Q4_1", "Q5_0"))


@pytest.fixture
def root(tmp_path):
    """A workspace whose target is a GGUF file of several types of blocks."""
    root = write_workspace(tmp_path / "workspace")
    (root / "models").mkdir()
    tokenizer = small_tokenizer("{{ messages }}")
    model = small_model("llama", vocabulary=len(tokenizer))
    write_llama_file(root / "models" / "tiny.gguf", model, tokenizer, kinds=KINDS)
    declared = root / "drafts" / "tiny" / "target.yaml"
    declared.write_text(declared.read_text().replace("models/tiny", "models/tiny.gguf"))
    for draft_id, body in DRAFTS.items():
        write_draft(root, draft_id, body)
    return root


def test_every_kind_of_draft_is_lossless_beside_the_files_own_blocks(root):
    drafts = ("ngram", *DRAFTS)
    result = run_drafts(root, *drafts, backend="auto", dtype="file")
    session = result.session
    assert (session.backend, session.dtype) == ("cpp", "f32")  # rows of 48 are no whole blocks
    assert [arm.failure for arm in session.arms] == [None] * len(session.arms)
    ran = {arm.id: (arm.backend, arm.dtype) for arm in session.arms}
    assert ran["baseline"] == ran["ngram"] == ran["exit"] == ("cpp", "f32")
    assert ran["shallow"] == ran["head"] == ("cpp", fastest_dtype("cpp", "cpu"))
    for arm in summarise(result).arms:
        if arm.arm.kind == "draft":
            assert arm.fidelity.status == "identical", arm.arm.id
    exact = next(arm for arm in summarise(result).arms if arm.arm.id == "exit")
    assert exact.acceptance.length > 1
    assert "--backend cpp --dtype file" in reproduce_command(session, "ngram")
    plain = run_drafts(root, "ngram", backend="cpp", dtype="bf16")
    assert {board.key.backend_and_dtype for board in build_boards([result, plain])} == {"cpp f32", "cpp bf16"}
    workspace = Workspace.open(root)
    again = resolved(workspace, RunRequest("tiny", drafts, dtype="file"))
    assert (again.backend, again.dtype) == ("cpp", "file")
    (left_out,) = plan_jobs(workspace, [again], [result]).left_out
    assert session.id in left_out.reason


@pytest.mark.parametrize("backend", ["transformers", "cuda-graphs"])
def test_other_backends_do_not_run_them(root, backend):
    with pytest.raises(InvalidInputError, match=f"{backend} does not run a GGUF file's own blocks"):
        run_drafts(root, "ngram", backend=backend, dtype="file")


def test_commands_say_what_they_run_and_what_not(root):
    save_small_target(root / "models" / "folder", "llama")
    other = root / "drafts" / "folder"
    other.mkdir()
    declared = (root / "drafts" / "tiny" / "target.yaml").read_text()
    declared = declared.replace("tiny.gguf", "folder").replace("id: tiny", "id: folder")
    (other / "target.yaml").write_text(declared)
    recipe = (root / "drafts" / "tiny" / "ngram.yaml").read_text()
    (other / "ngram.yaml").write_text(recipe.replace("target: tiny", "target: folder"))
    measured, folder, reference = several(
        root,
        ["run", "tiny", "--draft", "ngram", "--dtype", "file", "--json"],
        ["run", "folder", "--draft", "ngram", "--dtype", "file"],
        ["run", "tiny", "--draft", "ngram", "--dtype", "file", "--reference", "generate"],
    )
    assert measured.code == 0, measured.err
    assert "backend cpp, f32 (the blocks of the target's file, as they are)" in " ".join(measured.err.split())
    (board,) = json.loads(measured.out.splitlines()[-1])["boards"]
    assert (board["backend"], board["dtype"]) == ("cpp", "f32")
    assert folder.code == reference.code == 2
    assert "is no GGUF file" in folder.err
    assert "has no part in a session of cpp" in " ".join(reference.err.split())
