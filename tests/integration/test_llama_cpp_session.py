"""Sessions with llama.cpp: of a GGUF target, and of GGUF drafts beside a target in torch. Skipped where
llama-cpp-python is not installed."""

from __future__ import annotations

import json
import shutil

import pytest

from commands import several
from draftrank import Workspace, summarise
from draftrank.catalog.sources.base import file_sha256
from draftrank.engine.backends.choice import fastest_dtype
from draftrank.errors import InvalidInputError
from draftrank.jobs.session import build
from gguf_files import write_llama_file
from models import save_small_target, small_model, small_tokenizer
from workspaces import RECIPE, run_drafts, write_draft, write_workspace

pytest.importorskip(
    "llama_cpp", reason="llama-cpp-python is not installed (pip install 'draftrank[llama-cpp]')"
)
SHALLOW = "kind: draft_model\n  steps:\n    - {kind: drop_layers, keep: 2, select: ends}"
DRAFTS = {
    "packed": SHALLOW + "\n    - {kind: write_gguf, weights: f16}",
    "shallow": SHALLOW,
    "head": "kind: eagle\n  aux_hidden_states: [1, 2]",
    "exit": "kind: early_exit\n  layers: 2",
}


@pytest.fixture
def root(tmp_path):
    """A workspace whose target is a GGUF file."""
    root = write_workspace(tmp_path / "workspace")
    (root / "models").mkdir()
    tokenizer = small_tokenizer("{{ messages }}")
    write_llama_file(
        root / "models" / "tiny.gguf", small_model("llama", vocabulary=len(tokenizer)), tokenizer
    )
    declared = root / "drafts" / "tiny" / "target.yaml"
    declared.write_text(declared.read_text().replace("models/tiny", "models/tiny.gguf"))
    for draft_id, body in DRAFTS.items():
        write_draft(root, draft_id, body)
    return root


def measured(root, backend, *drafts, **asked):
    return run_drafts(root, *drafts, **({"backend": backend, "dtype": "auto"} | asked))


def test_a_gguf_target_is_measured_with_drafts_of_its_own_and_of_other_backends(root):
    drafts = ("ngram", "packed", "shallow")
    with pytest.raises(InvalidInputError, match=r"the draft shallow does not run in llama\.cpp"):
        measured(root, "llama.cpp", *drafts)
    for draft, reason in (
        ("exit", r"llama\.cpp cannot run a model's first layers"),
        ("head", r"it reads outputs of the target's layers, which llama\.cpp does not tell"),
    ):
        with pytest.raises(InvalidInputError, match=rf"the draft {draft} .*: {reason}"):
            measured(root, "llama.cpp", draft, allow_mixed_backends=True)
    result = measured(root, "llama.cpp", *drafts, allow_mixed_backends=True)
    session = result.session
    assert (session.backend, session.dtype) == ("llama.cpp", "f32")
    assert "llama_cpp_python" in session.machine.packages
    assert [arm.failure for arm in session.arms] == [None] * len(session.arms)
    for arm in summarise(result).arms:
        if arm.arm.kind == "draft":
            assert arm.fidelity.status in ("identical", "ties"), arm.arm.id
            assert arm.missing == 0
            assert arm.arm.latencies
    ran = {arm.id: (arm.backend, arm.dtype) for arm in session.arms}
    fast = fastest_dtype("cpp", "cpu")
    assert (ran["ngram"], ran["packed"]) == (("llama.cpp", "f32"), ("llama.cpp", "f16"))
    assert ran["shallow"] == ("cpp", fast)
    packed = next(arm.draft for arm in session.arms if arm.id == "packed")
    assert packed.parameters > 0
    assert packed.weights_sha256 is not None
    assert "GGUF" in packed.techniques


def test_a_gguf_draft_serves_a_target_in_torch_where_that_is_asked_for(root):
    with pytest.raises(
        InvalidInputError, match="the draft packed does not run in any backend beside this target"
    ):
        measured(root, "auto", "packed")
    result = measured(root, "transformers", "packed", dtype="fp32", allow_mixed_backends=True)
    (arm,) = [arm for arm in summarise(result).arms if arm.arm.kind == "draft"]
    assert result.session.backend == "transformers"
    assert (arm.arm.backend, arm.arm.dtype) == ("llama.cpp", "f16")
    assert arm.fidelity.status == "identical"
    assert 1.0 <= arm.acceptance.length <= 4.0


def test_two_builds_of_a_gguf_draft_are_the_same_file(root):
    workspace = Workspace.open(root)
    hashes = []
    for _ in range(2):
        (built,) = build(workspace, "tiny", ("packed",))
        assert built.folder is not None, built.failure
        hashes.append(file_sha256(built.folder / "draft.gguf"))
        shutil.rmtree(built.folder)
    assert hashes[0] == hashes[1]


def test_commands_say_what_llama_cpp_does_not_do(root):
    save_small_target(root / "models" / "folder", "llama")
    other = root / "drafts" / "folder"
    other.mkdir()
    declared = (root / "drafts" / "tiny" / "target.yaml").read_text()
    (other / "target.yaml").write_text(
        declared.replace("tiny.gguf", "folder").replace("id: tiny", "id: folder")
    )
    (other / "ngram.yaml").write_text(RECIPE.replace("target: tiny", "target: folder"))
    plain = ["run", "tiny", "--draft", "ngram", "--backend", "llama.cpp"]
    folder, cuda, reference, measured, exported, other_form, kept = several(
        root,
        ["run", "folder", "--draft", "ngram", "--backend", "llama.cpp"],
        [*plain, "--device", "cuda"],
        [*plain, "--reference", "generate"],
        [*plain, "--json"],
        ["export", "packed", "--target", "tiny", "--for", "llama.cpp", "--to", str(root / "out")],
        ["export", "packed", "--target", "tiny", "--to", str(root / "other")],
        ["keep", "packed", "--target", "tiny"],
    )
    assert (folder.code, cuda.code, reference.code) == (2, 2, 2)
    assert "no GGUF file" in folder.err
    assert "drafts/folder/target.yaml" in folder.err
    assert "there is no CUDA device here" in cuda.err or "use --device cpu" in cuda.err
    assert "leave it out" in reference.err
    assert measured.code == 0, measured.err
    (board,) = json.loads(measured.out.splitlines()[-1])["boards"]
    assert (board["backend"], board["dtype"]) == ("llama.cpp", "f32")
    assert exported.code == 0, exported.err
    assert (root / "out" / "draft.gguf").is_file()
    assert other_form.code == 1
    assert "export the recipe without write_gguf" in " ".join(other_form.err.split())
    assert kept.code == 1
    assert "keep the recipe without write_gguf" in " ".join(kept.err.split())
