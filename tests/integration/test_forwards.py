"""Which backend a session takes, what it says of it, and what it records."""

from __future__ import annotations

import shutil

import pytest

from commands import several
from draftrank import RunRequest, Workspace, build_boards, summarise
from draftrank.board.reproduce import reproduce_command
from draftrank.catalog.backend import Asked
from draftrank.engine.backends import registry
from draftrank.engine.backends.choice import Candidates, choose, draft_misfit, fastest_dtype
from draftrank.engine.backends.cpp import library
from draftrank.errors import InvalidInputError
from draftrank.jobs import session
from draftrank.jobs.session import build, choose_backend, choose_recipes
from draftrank.measure.gates.verdict import judge
from draftrank.models.loading import load_model
from draftrank.models.target_folder import ensure_target
from draftrank.progress import SilentProgress
from tiny_workspace import write_tiny_workspace
from workspaces import run_drafts, write_draft

MODEL = "kind: draft_model\n  steps:\n"
SHALLOW = MODEL + "    - {kind: drop_layers, keep: 2, select: ends}"
THIN = SHALLOW + "\n    - {kind: factorize, keep_parameters: 0.5, activation_aware: false}"
FORMS = {
    "shallow": SHALLOW,
    "merged": MODEL + "    - {kind: merge_layers, keep: 2}",
    "tied": SHALLOW + "\n    - {kind: tie_layers, blocks: 1}",
    "narrow": MODEL + "    - {kind: prune_ffn, keep_channels: 16, importance: magnitude}",
    "thin": THIN,
    "thin-head": SHALLOW + "\n    - {kind: factorize_head, rank: 8, activation_aware: false}",
    "trimmed": SHALLOW + "\n    - {kind: trim_vocabulary, keep_tokens: 60}",
    "sparse": SHALLOW + "\n    - {kind: sparsify, method: magnitude, sparsity: 0.5}",
    "sparse24": SHALLOW + "\n    - {kind: sparsify, method: magnitude, pattern: '2:4'}",
    "random": MODEL + "    - {kind: random}",
    "eagle3": "kind: eagle\n  aux_hidden_states: [1, 2]",
    "eagle3-trimmed": "kind: cascade\n  steps:\n    - {kind: eagle_head, aux_hidden_states: [1]}\n"
    "    - {kind: trim_vocabulary, keep_tokens: 60}",
    "int8": SHALLOW + "\n    - {kind: quantize, scheme: dynamic_int8}",
    "int8-head-precise": SHALLOW + "\n    - {kind: quantize, scheme: dynamic_int8, keep_precise: [lm_head]}",
    "int8-precise": SHALLOW + "\n    - {kind: quantize, scheme: dynamic_int8, keep_precise: [down_proj]}",
    "torchao": SHALLOW + "\n    - {kind: quantize, scheme: int8_weight_only}",
    "nf4": SHALLOW + "\n    - {kind: quantize, scheme: nf4}",
}


@pytest.fixture
def thin_root(workspace_root):
    write_draft(workspace_root, "thin", THIN)
    return workspace_root


def measured(root, *drafts, **asked):
    asked = {"backend": "auto", "dtype": "auto"} | asked
    return run_drafts(root, *drafts, repeats=1, fresh=True, **asked)


def chosen(root, *drafts, **asked):
    workspace = Workspace.open(root)
    request = RunRequest("tiny", drafts, device="cpu", **asked)
    return choose_backend(workspace, request, choose_recipes(workspace, "tiny", drafts))


def test_every_kind_of_draft_is_lossless_in_cpp_and_has_a_board_apart(workspace_root):
    plain, compiled, again = (
        run_drafts(workspace_root, backend=backend) for backend in ("transformers", "cpp", "cpp")
    )
    assert again == compiled
    assert compiled.session.id != plain.session.id
    assert (plain.session.backend, compiled.session.backend) == ("transformers", "cpp")
    assert [arm.failure for arm in compiled.session.arms] == [None] * len(compiled.session.arms)
    for arm in summarise(compiled).arms:
        assert arm.arm.backend == "cpp"
        assert arm.arm.dtype == ("int8" if arm.arm.id == "int8" else "fp32")
        if arm.arm.kind == "draft":
            assert arm.fidelity.status == "identical"
    outputs = {
        (trial.prompt, trial.turn): trial.token_ids for trial in plain.trials if trial.arm == "baseline"
    }
    assert all(trial.token_ids == outputs[trial.prompt, trial.turn] for trial in compiled.trials)
    assert len(build_boards([plain, compiled])) == 2
    assert "--backend cpp" in reproduce_command(compiled.session, "ngram")
    assert "--backend transformers" in reproduce_command(plain.session, "ngram")


def test_auto_takes_the_fastest_backend_and_says_why_in_one_line(workspace_root):
    choice = chosen(workspace_root)
    assert (choice.backend, choice.dtype) == ("cpp", fastest_dtype("cpp", "cpu"))
    assert choice.messages == (choice.sentence,)
    assert choice.sentence.startswith(f"backend cpp, {choice.dtype}: compiled for ")
    result = measured(workspace_root, "ngram")
    assert (result.session.backend, result.session.dtype) == (choice.backend, choice.dtype)


def test_auto_falls_back_for_a_named_draft_with_its_name_and_reason(thin_root):
    choice = chosen(thin_root, "ngram", "thin")
    assert choice.backend == "transformers"
    assert "the draft thin does not run in cpp (its matrices are products of thin ones)" in choice.sentence
    result = measured(thin_root, "ngram", "thin")
    assert {arm.backend for arm in result.session.arms} == {"transformers"}
    assert [arm.failure for arm in result.session.arms] == [None] * 4


def test_a_draft_that_nobody_named_is_left_out_with_its_reason(thin_root):
    choice = chosen(thin_root)
    assert choice.backend == "cpp"
    assert choice.left_out == {"thin": "its matrices are products of thin ones"}
    assert "the draft thin is left out" in choice.messages[1]
    assert "thin" not in {arm.id for arm in measured(thin_root).session.arms}


def test_an_asked_for_backend_refuses_a_draft_before_it_is_built(thin_root, monkeypatch):
    monkeypatch.setattr("draftrank.building.pipeline.build_draft", pytest.fail)
    with pytest.raises(InvalidInputError) as caught:
        measured(thin_root, "ngram", "thin", backend="cpp")
    assert "the draft thin does not run in cpp: its matrices are products of thin ones" in str(caught.value)
    assert "leave it out, or use --backend auto or --allow-mixed-backends" in str(caught.value)


@pytest.mark.parametrize("backend", ["auto", "cpp"])
def test_a_draft_in_another_backend_is_shown_marked_and_not_ranked(thin_root, backend):
    result = measured(
        thin_root, "ngram", "thin", "int8", backend=backend, dtype="fp32", allow_mixed_backends=True
    )
    arms = {arm.id: arm for arm in result.session.arms}
    assert result.session.backend == "cpp"
    assert (arms["thin"].backend, arms["int8"].backend) == ("transformers", "cpp")
    assert arms["int8"].dtype == "int8"
    (board,) = build_boards([result])
    rows = {row.draft: row for row in board.rows}
    assert rows["thin"].speedup is not None
    assert (rows["thin"].ranked, rows["thin"].rank) == (False, None)
    assert "other-backend" in [finding.gate for finding in rows["thin"].findings]
    assert f"transformers {arms['thin'].dtype}" in next(
        one.reason for one in rows["thin"].findings if one.gate == "other-backend"
    )
    assert not any(one.gate == "other-backend" for one in rows["ngram"].findings)
    assert "--allow-mixed-backends" in reproduce_command(result.session, "thin")
    assert "--allow-mixed-backends" not in reproduce_command(result.session, "ngram")


def test_a_draft_that_turns_out_not_to_fit_fails_and_runs_nowhere_else(thin_root, monkeypatch):
    """Its recipe makes a plain model: the arm fails with the reason, since nobody asked for another backend."""
    monkeypatch.setattr("draftrank.engine.backends.choice._misfit", lambda *_: None)
    result = measured(thin_root, "ngram", "thin", backend="cpp")
    arms = {arm.id: arm for arm in result.session.arms}
    assert "the backend cpp cannot run it" in arms["thin"].failure
    assert not [trial for trial in result.trials if trial.arm == "thin"]
    assert arms["ngram"].failure is None
    thin = next(arm for arm in summarise(result).arms if arm.arm.id == "thin")
    assert not judge(summarise(result), thin).ranked


def test_without_a_compiler_auto_says_so_and_cpp_is_refused(workspace_root, monkeypatch):
    monkeypatch.setattr(library, "compiler", lambda: None)
    choice = chosen(workspace_root, "ngram")
    assert choice.backend == "transformers"
    assert "no C++ compiler is here" in choice.sentence
    with pytest.raises(InvalidInputError, match=r"no C\+\+ compiler is here.*use --backend auto"):
        chosen(workspace_root, "ngram", backend="cpp")


def test_an_unknown_architecture_falls_back_and_is_refused_where_it_is_asked_for(tmp_path):
    root = write_tiny_workspace(tmp_path / "workspace", "gpt2")
    choice = chosen(root, "ngram")
    assert choice.backend == "transformers"
    assert "the architecture gpt2 is not written for it" in choice.sentence
    cpp, graphs, cuda, half = several(
        root,
        ["run", "tiny", "--draft", "ngram", "--backend", "cpp"],
        ["run", "tiny", "--draft", "ngram", "--backend", "cuda-graphs", "--device", "cpu"],
        ["run", "tiny", "--draft", "ngram", "--device", "cuda"],
        ["run", "tiny", "--draft", "ngram", "--backend", "llama.cpp", "--dtype", "bf16"],
    )
    assert {found.code for found in (cpp, graphs, cuda, half)} == {2}
    assert (
        "the backend cpp cannot run the target tiny: the architecture gpt2 is not written for it" in cpp.err
    )
    assert "use --backend auto" in cpp.err
    assert "it runs on a GPU only" in graphs.err
    if not registry.torch.cuda.is_available():
        assert "there is no CUDA device here" in cuda.err


TREE = "speculate:\n  num_speculative_tokens: 3\n  branch_above_probability: 0.1"


@pytest.mark.parametrize(
    ("family", "draft", "says"),
    [
        ("lfm2", "early-exit", "layers of lfm2 keep a state that is rolled back in all of them at once"),
        ("lfm2", "tree", "layers of lfm2 keep a state that follows one chain of tokens"),
        ("bloom", "tree", "bloom takes the distance of two tokens from the order in which they are read"),
        ("gpt_neo", "tree", "gpt_neo limits its local attention inside its layers"),
    ],
)
def test_what_a_target_cannot_do_for_a_draft_is_known_before_the_build(
    tmp_path, monkeypatch, family, draft, says
):
    root = write_tiny_workspace(tmp_path / "workspace", family)
    declared = root / "drafts" / "tiny" / "target.yaml"
    declared.write_text(declared.read_text() + "context_window: 256\n")
    shallow = (root / "drafts" / "tiny" / "shallow.yaml").read_text()
    tree = shallow.replace("id: shallow", "id: tree").partition("speculate:")[0] + TREE
    (root / "drafts" / "tiny" / "tree.yaml").write_text(tree + "\n")
    monkeypatch.setattr(session, "build_all", lambda *_: pytest.fail("built"))
    with pytest.raises(InvalidInputError, match=rf"the draft {draft} does not run .*: .*{says}"):
        run_drafts(root, draft)
    assert "shallow" not in chosen(root, "shallow").left_out
    assert draft in chosen(root).left_out


def test_fp16_is_not_for_cpp(workspace_root):
    choice = chosen(workspace_root, "ngram", dtype="fp16")
    assert (choice.backend, choice.dtype) == ("transformers", "fp16")
    assert "it computes in fp32 and bf16, not in fp16" in choice.sentence


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_what_a_recipe_lets_expect_is_what_its_model_shows(tmp_path, architecture):
    """Before the build by the recipe's steps, after it by the model: both say the same of every backend."""
    root = write_tiny_workspace(tmp_path / "workspace", architecture)
    shutil.rmtree(root / "drafts" / "tiny" / "schemas", ignore_errors=True)
    for draft_id, body in FORMS.items():
        write_draft(root, draft_id, body)
    workspace = Workspace.open(root)
    folder = ensure_target(workspace.target("tiny"), workspace.fetch_context(SilentProgress()))
    checked = set()
    forms = tuple(FORMS) if architecture == "llama" else ("shallow", "trimmed", "int8", "thin", "eagle3")
    for arm in build(workspace, "tiny", forms):
        if arm.folder is None:
            assert "needs the library" in arm.failure, (arm.recipe.id, arm.failure)
            continue
        what = Candidates("tiny", folder.path, (arm.recipe,))
        for dtype in ("fp32", "bf16"):
            model = load_model(arm.folder, dtype, "cpu")
            own = registry._dtype_of(model)
            for backend in ("transformers", "cpp"):
                before = draft_misfit(arm.recipe, what, backend, dtype, "cpu")
                after = registry.why_not(backend, model, own, "cpu")
                assert (before is None) == (after is None), (arm.recipe.id, dtype, backend, before, after)
                checked.add((arm.recipe.id, backend, after is None))
                if after is None:
                    reads = arm.recipe.id.startswith("eagle3")
                    opened = (registry.open_eagle_runtime if reads else registry.open_runtime)(model, backend)
                    assert opened.name == backend
    assert {("thin", "cpp", False), ("int8", "cpp", True), ("eagle3", "cpp", True)} <= checked
    if architecture == "llama":
        assert {("int8-precise", "cpp", False), ("thin-head", "cpp", True)} <= checked
        assert ("eagle3-trimmed", "cpp", True) in checked


def test_commands_print_the_backend_and_doctor_explains_the_choice(workspace_root):
    command = ["run", "tiny", "--draft", "ngram", "--dtype", "bf16", "--json", "--backend"]
    *ran, looked = several(
        workspace_root, [*command, "transformers"], [*command, "cpp"], ["doctor", "--json"]
    )
    for backend, found in zip(("transformers", "cpp"), ran, strict=True):
        assert found.code == 0, found.err
        assert f"tiny · quick · {backend} bf16 · greedy" in " ".join(found.out.split())
        (board,) = found.json["boards"]
        assert (board["backend"], board["dtype"]) == (backend, "bf16")
    findings = {one["what"]: one for one in looked.json["findings"]}
    assert findings["backend transformers"]["status"] == "ok"
    assert findings["backend cpp"]["status"] == "ok"
    if not registry.torch.cuda.is_available():
        assert "runs on a GPU only" in findings["backend cuda-graphs"]["found"]
        assert findings["auto"]["found"].startswith("backend cpp, ")


def test_an_asked_for_device_that_is_not_there_is_refused(workspace_root):
    if registry.torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(InvalidInputError, match="there is no CUDA device here"):
        choose(Asked(device="cuda"), Candidates("tiny", workspace_root / "models" / "tiny"))
