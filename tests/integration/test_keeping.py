"""A trained draft that lies beside its recipe needs no training, and is what was built bit by bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from commands import draftrank
from draftrank import Store, Workspace
from draftrank.building.kept_files import kept_files
from draftrank.building.steps.quantize import Quantize
from draftrank.building.steps.trim_vocabulary import TrimVocabulary
from draftrank.building.text.conversation_row import ANSWER, PROMPT
from draftrank.building.text.corpus import Corpus
from draftrank.building.text.overlap import said_in, words_of
from draftrank.building.training import distillation
from draftrank.jobs.session import build
from draftrank.models.cache import draft_key
from draftrank.models.loading import load_tokenizer
from draftrank.models.target_folder import ensure_target
from draftrank.workflows.keep import keep_draft
from draftrank.workflows.submit import submit
from overlap_texts import LONG, corpus_of
from tiny_workspace import write_tiny_workspace
from workspaces import PROMPTS, run_drafts, write_draft, write_prompts

DRAFT = """kind: eagle
  aux_hidden_states: [1, 2]
  steps:
    - {kind: trim_vocabulary, keep_tokens: 64}
    - kind: distill
      data: {kind: self_generated, tokens: 1000, sequence_tokens: 16}
      ttt_steps: 2
      round_weights: true"""
MORE = f"{DRAFT}\n    - {{kind: quantize, scheme: dynamic_int8}}"
KEPT = ("kept/small.json", "kept/small.safetensors")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A workspace that keeps a draft. Not to be changed."""
    root = write_tiny_workspace(tmp_path_factory.mktemp("kept") / "workspace")
    folder = write_draft(root, "small", DRAFT).parent
    outcome = draftrank(root, "keep", "small", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["bytes"] == (folder / KEPT[1]).stat().st_size
    return root


@pytest.fixture
def kept_root(kept, tmp_path):
    """A copy of it to change."""
    return Path(shutil.copytree(kept, tmp_path / "workspace"))


@pytest.fixture
def never_trained(monkeypatch):
    def fail(*_):
        raise AssertionError("it was trained")

    monkeypatch.setattr(distillation, "distill", fail)


def forget(root):
    workspace = Workspace.open(root)
    built = next(iter(build(workspace, "tiny", ("small",)))).build
    shutil.rmtree(workspace.cache / "drafts")
    return workspace, built


def test_a_kept_draft_is_put_together_without_training(kept_root, never_trained):  # noqa: ARG001
    workspace, before = forget(kept_root)
    (arm,) = build(workspace, "tiny", ("small",))
    assert arm.failure is None
    assert arm.build == before
    # the embedding is the target's, the trimmed head some of its rows, and the rest takes two bytes a number
    described = json.loads((kept_root / "drafts" / "tiny" / KEPT[0]).read_text())
    assert "model.embed_tokens.weight" in described["from_target"]
    assert described["rows_of_target"]["lm_head.projection.weight"]["token_ids"] == "lm_head.token_ids"
    with safe_open(kept_root / "drafts" / "tiny" / KEPT[1], "pt") as stored:
        assert {"lm_head.token_ids", "feature_fusion.fc.weight"} <= set(stored.keys())
        assert "lm_head.projection.weight" not in stored.keys()  # noqa: SIM118
    own = (kept_root / "drafts" / "tiny" / KEPT[1]).stat().st_size
    assert own < before.bytes_on_disk / 2
    assert draftrank(kept_root, "run", "tiny", "--draft", "small").code == 0


def test_what_adds_steps_to_a_kept_draft_begins_with_it(kept_root, never_trained):  # noqa: ARG001
    """Under another name and behind copying, where the head is a step of its own; or with a step more."""
    workspace, before = forget(kept_root)
    other = DRAFT.replace(
        "kind: eagle\n  aux_hidden_states: [1, 2]\n  steps:\n",
        "kind: cascade\n  steps:\n    - {kind: eagle_head, aux_hidden_states: [1, 2]}\n",
    )
    write_draft(kept_root, "other", other)
    write_draft(kept_root, "more", MORE)
    found = {arm.recipe.id: arm.build for arm in build(workspace, "tiny", ("more", "other"))}
    assert found["other"].weights_sha256 == before.weights_sha256
    assert found["more"].build_s >= before.build_s


def test_what_was_kept_serves_on_when_the_code_of_a_step_changes(kept_root, never_trained, monkeypatch):  # noqa: ARG001
    """What was built and measured is this very draft; a build in the cache by other code is another one."""
    workspace, before = forget(kept_root)
    recipe = workspace.recipe("tiny", "small")
    key = draft_key(recipe.draft, before.weights_sha256)
    monkeypatch.setattr(TrimVocabulary, "code_version", 9)
    assert draft_key(recipe.draft, before.weights_sha256) != key
    (arm,) = build(workspace, "tiny", ("small",))
    assert arm.build == before
    # kept once more it still says by which code it was built, and is found again
    first = (kept_root / "drafts" / "tiny" / KEPT[0]).read_text()
    keep_draft(workspace, "tiny", "small")
    assert (kept_root / "drafts" / "tiny" / KEPT[0]).read_text() == first
    # what adds steps to it says so too
    write_draft(kept_root, "more", MORE)
    keep_draft(workspace, "tiny", "more")
    shutil.rmtree(workspace.cache / "drafts")
    monkeypatch.setattr(TrimVocabulary, "code_version", 10)
    monkeypatch.setattr(Quantize, "apply", lambda *_: pytest.fail("it was built"))
    (arm,) = build(workspace, "tiny", ("more",))
    assert arm.failure is None


def test_a_pull_request_has_all_that_is_kept_of_its_draft(kept_root, monkeypatch):
    workspace, folder = Workspace.open(kept_root), kept_root / "drafts" / "tiny"
    target = ensure_target(workspace.target("tiny"), workspace.fetch_context()).weights_sha256
    (folder / "kept" / "damaged.json").write_text("[1, 2")
    texts = sorted(f"kept/text/{path.name}" for path in (folder / "kept" / "text").iterdir())
    write_draft(kept_root, "more", MORE)
    for draft in ("small", "more"):
        found = kept_files(workspace.recipe("tiny", draft).draft, target, folder)
        assert [path.relative_to(folder).as_posix() for path in found] == [*KEPT, *texts]
    assert kept_files(workspace.recipe("tiny", "ngram").draft, target, folder) == ()
    assert kept_files(workspace.recipe("tiny", "small").draft, "0" * 64, folder) == ()
    run_drafts(kept_root, "small")
    monkeypatch.setattr("draftrank.workflows.submit.require_times", lambda *_: None)  # of a busy machine
    with Store.open(workspace.store_url) as store:
        done = submit(workspace, "tiny", "small", store)
    names = [path.relative_to(folder).as_posix() for path in done.recipe]
    assert names == ["small.yaml", *KEPT, *texts]


def test_the_text_of_a_kept_draft_is_compared_by_its_hashes(kept_root):
    """Of a draft kept elsewhere only weights and hashes are there; a prompt that stands in its text is found."""
    workspace, _ = forget(kept_root)
    corpus, other = (workspace.cache / "corpora").glob("*.safetensors")
    hashes = kept_root / "drafts" / "tiny" / "kept" / "text"
    assert {path.name for path in hashes.iterdir()} == {corpus.name, other.name}
    tokenizer = load_tokenizer(kept_root / "models" / "tiny")
    messages = [message for path in (corpus, other) for message in said_in(Corpus.read(path), tokenizer)[0]]
    asked = next(message for message in messages if message.isascii() and any(map(str.isalpha, message)))
    corpus.unlink()
    other.unlink()

    def measured():
        outcome = draftrank(kept_root, "run", "tiny", "--draft", "small")
        with Store.open(workspace.store_url) as store:
            session = store.sessions()[-1]
        return next(arm for arm in session.arms if arm.id == "small"), outcome.err

    arm, said = measured()
    assert (arm.failure, arm.draft.text_compared) == (None, "hashes")
    assert "not compared" not in said
    write_prompts(kept_root, [*PROMPTS, {"id": "seen", "turns": [f"... {asked.upper()}?"]}])
    arm, _ = measured()
    assert "refused: the text it was made with holds words of the prompt seen" in arm.failure
    swept = draftrank(kept_root, "sweep", "tiny", "--draft", "small", "--fresh", "--json")
    assert swept.code == 1, "as of run: its session was measured without the draft"
    assert {job["state"] for job in swept.json["jobs"]} == {"done"}
    assert "small failed in session" in swept.out
    # without hashes nothing is claimed, and keeping the draft again has the target write its text again
    hashes.rename(kept_root / "hashes")
    arm, said = measured()
    assert arm.draft.text_compared == "nothing"
    assert "no hashes of it are kept" in said
    assert draftrank(kept_root, "keep", "small").code == 0
    for name in (corpus.name, other.name):
        assert (hashes / name).read_bytes() == (kept_root / "hashes" / name).read_bytes()


def test_a_phrase_of_a_users_own_prompt_refuses_no_draft(kept_root):
    workspace, _ = forget(kept_root)
    tokenizer = load_tokenizer(kept_root / "models" / "tiny")
    written = corpus_of(tokenizer, (PROMPT, "Go on"), (ANSWER, f"Once {LONG} and so on"))
    for path in (workspace.cache / "corpora").glob("*.safetensors"):
        save_file({"tokens": written.tokens, "roles": written.roles}, path)

    def measured(turn):
        write_prompts(kept_root, [*PROMPTS, {"id": "own", "turns": [turn]}])
        said = draftrank(kept_root, "run", "tiny", "--draft", "small").err
        with Store.open(workspace.store_url) as store:
            return next(arm for arm in store.sessions()[-1].arms if arm.id == "small"), said

    arm, said = measured(f"{LONG} Tell it again {'in other words ' * 5}")
    assert (arm.failure, arm.draft.text_compared) == (None, "text")
    assert (
        f'has a phrase of the prompt own of the task small: "{" ".join(words_of(LONG))}", too short to refuse it'
        in said
    )
    arm, said = measured(f"{LONG} Tell it again")
    assert "refused: the text it was made with holds words of the prompt own" in arm.failure
    assert "has a phrase" not in said


def test_text_that_cannot_be_written_again_is_said(kept_root):
    """As where another device wrote it."""
    workspace, _ = forget(kept_root)
    described = kept_root / "drafts" / "tiny" / KEPT[0]
    found = json.loads(described.read_text())
    found["facts"]["corpora"] = ["f" * 64]
    described.write_text(json.dumps(found))
    outcome = draftrank(kept_root, "keep", "small")
    assert outcome.code == 0
    assert "cannot be written again here" in outcome.err
    assert workspace.cache.is_dir()


@pytest.mark.parametrize("tamper", ["weights", "hash", "nonsense", "too much"])
def test_what_was_tampered_with_is_built_anew_and_said(kept_root, tamper):
    workspace, before = forget(kept_root)
    described, weights = (kept_root / "drafts" / "tiny" / name for name in KEPT)
    found = json.loads(described.read_text())
    if tamper == "weights":
        data = bytearray(weights.read_bytes())
        data[-3] ^= 1
        weights.write_bytes(data)
    elif tamper == "hash":
        described.write_text(json.dumps(found | {"weights_sha256": "0" * 64}))
    elif tamper == "nonsense":
        described.write_text("[1, 2")
    else:
        described.write_text(json.dumps(found | {"of_tomorrow": 1}))
    outcome = draftrank(kept_root, "build", "tiny", "--draft", "small")
    assert outcome.code == 0, outcome.err
    assert "of no use" in outcome.err
    (arm,) = build(workspace, "tiny", ("small",))
    assert arm.build.weights_sha256 == before.weights_sha256


def test_a_recipe_that_has_changed_since_is_built_anew(kept_root):
    workspace, before = forget(kept_root)
    recipe = kept_root / "drafts" / "tiny" / "small.yaml"
    recipe.write_text(recipe.read_text().replace("tokens: 1000", "tokens: 1200"))
    (arm,) = build(workspace, "tiny", ("small",))
    assert arm.build.weights_sha256 != before.weights_sha256


def test_what_cannot_be_kept_is_said(workspace_root, monkeypatch):
    outcome = draftrank(workspace_root, "keep", "ngram")
    assert outcome.code == 2
    assert "no weights of its own" in outcome.err
    from draftrank.building import kept_drafts
    from draftrank.errors import BuildError

    monkeypatch.setattr(kept_drafts, "MAX_BYTES", 10)
    with pytest.raises(BuildError, match="round_weights"):
        keep_draft(Workspace.open(workspace_root), "tiny", "shallow")
