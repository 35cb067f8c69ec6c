"""A search on a tiny target, through the library and the command."""

from __future__ import annotations

import json
import os

import pytest

from commands import draftrank
from draftrank import RunRequest, Store, Workspace
from draftrank.catalog.loading import load_declaration
from draftrank.catalog.recipe import Recipe
from draftrank.errors import InvalidInputError
from draftrank.jobs.session import build
from draftrank.workflows.search import search as searching
from draftrank.workflows.search.choice import RUNGS, Choice
from draftrank.workflows.search.search import search
from draftrank.workflows.search.training import Training
from tiny_workspace import write_tiny_workspace
from workspaces import write_draft

pytest.importorskip("optuna")
SHORT = RunRequest("tiny", dtype="fp32"), 12.0


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """Optuna waits for it after each line of its journal."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def two_models(monkeypatch):
    """A search that tries two models and no more, however fast the machine is."""
    chosen = []
    ask = searching.suggest

    def suggest(trial, shape):
        choice = ask(trial, shape)
        return choice if len(set(chosen)) < 2 and not chosen.append(choice) else chosen[0]

    monkeypatch.setattr(searching, "suggest", suggest)
    monkeypatch.setattr(searching, "_MAX_REPEATS", 3)
    return chosen


def test_the_fastest_measured_is_found_and_no_prompt_of_a_task_decides_what_is_trained(
    workspace_root,
    two_models,  # noqa: ARG001
):
    workspace = Workspace.open(workspace_root)
    with Store.open(workspace.store_url) as store:
        found = search(workspace, *SHORT, store)
    assert 1 <= len(found.tried) <= 2
    for one in found.tried:
        assert one.prediction is not None, one.note
        assert 0 <= one.agreement <= 1
        assert one.cost > 0
        assert one.rung >= RUNGS or one.note == "given up"
    arms = {arm.id: arm for arm in found.session.session.arms if arm.kind == "draft"}
    assert {recipe.id for recipe in found.recipes} == arms.keys()
    assert "ngram-by-match" in arms
    assert all(arm.failure is None for arm in arms.values())
    assert found.best in found.recipes
    assert found.session.session.suite == "quick-search"


def test_a_search_that_was_stopped_goes_on_and_trains_nothing_twice(workspace_root, two_models, monkeypatch):
    workspace = Workspace.open(workspace_root)
    look = Training.look

    def stop(self, choice, rung):
        if rung == 2:
            raise KeyboardInterrupt
        return look(self, choice, rung)

    monkeypatch.setattr(Training, "look", stop)
    with Store.open(workspace.store_url) as store:
        with pytest.raises(KeyboardInterrupt):
            search(workspace, *SHORT, store)
        built = {path.name for path in (workspace.cache / "drafts").iterdir()}
        assert built
        monkeypatch.setattr(Training, "look", look)
        two_models.clear()
        found = search(workspace, *SHORT, store)
        after = {path: path.stat().st_mtime_ns for path in (workspace.cache / "drafts").iterdir()}
        assert built <= {path.name for path in after}
        two_models.clear()
        again = search(workspace, *SHORT, store)
    assert again.session == found.session
    assert again.tried == found.tried
    assert {path: path.stat().st_mtime_ns for path in after} == after


def test_a_head_that_the_target_cannot_have_is_noted_and_the_search_goes_on(tmp_path, monkeypatch):
    """Layers of DeepSeek V4 carry several states of each token."""
    root = write_tiny_workspace(tmp_path / "workspace", "deepseek_v4")
    declared = root / "drafts" / "tiny" / "target.yaml"
    declared.write_text(declared.read_text() + "context_window: 256\n")
    workspace = Workspace.open(root)
    chosen = iter([Choice(layers=None, vocabulary=None), Choice(layers=1, vocabulary=None)])
    monkeypatch.setattr(searching, "suggest", lambda *_: next(chosen, Choice(layers=1, vocabulary=None)))
    monkeypatch.setattr(searching, "_MAX_REPEATS", 1)
    monkeypatch.setattr(searching, "PAYS", 9.0)  # one longer training is enough
    for share in ("EXPLORING_SHARE", "TRAINING_SHARE"):  # so that no clock ends it on a busy machine
        monkeypatch.setattr(searching, share, 100.0)
    with Store.open(workspace.store_url) as store:
        found = search(workspace, *SHORT, store)
    assert found.tried[0].prediction is None
    assert "carry several states of each token" in found.tried[0].note
    assert all(one.prediction is not None for one in found.tried[1:])


TRAINED = """kind: cascade
  steps:
    - {kind: eagle_head, aux_hidden_states: [1, 2]}
    - kind: distill
      data: {kind: self_generated, tokens: 1000, sequence_tokens: 16}
      ttt_steps: 2"""


def test_it_goes_on_from_what_recipes_have_trained_and_trains_no_recipe(workspace_root, monkeypatch):
    write_draft(workspace_root, "mine", TRAINED)
    write_draft(workspace_root, "never", TRAINED.replace("1000", "1200"))
    workspace = Workspace.open(workspace_root)
    (mine,) = build(workspace, "tiny", ("mine",))
    assert mine.failure is None
    before = {path.name for path in (workspace.cache / "drafts").iterdir()}
    monkeypatch.setattr(searching, "_MAX_REPEATS", 0)  # so that nothing else is there to go on from
    with Store.open(workspace.store_url) as store:
        found = search(workspace, *SHORT, store)
    (one,) = found.tried
    assert one.choice.recipe == "mine"
    assert one.rung >= RUNGS
    assert one.seconds > 0
    assert any(recipe.id.startswith("suffix-mine-longer") for recipe in found.recipes)
    assert before < {path.name for path in (workspace.cache / "drafts").iterdir()}


@pytest.mark.nightly
def test_the_command_leaves_a_recipe_that_runs_and_a_page(workspace_root, tmp_path):
    out = tmp_path / "found"
    command = ["search", "--target", "tiny", "--budget", "10s", "--dtype", "fp32", "--out", str(out)]
    outcome = draftrank(workspace_root, *command, "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.json
    recipe = load_declaration(out / f"{found['best']}.yaml", Recipe)
    assert json.loads(recipe.model_dump_json(exclude_none=True)) == found["recipe"]
    page = (out / "index.html").read_text()
    assert found["best"] in page
    assert all(one["name"] in page for one in found["tried"])
    assert found["best"] in outcome.out
    kept = workspace_root / "drafts" / "tiny" / f"{found['best']}.yaml"
    kept.write_text((out / f"{found['best']}.yaml").read_text())
    assert draftrank(workspace_root, "run", "tiny", "--draft", found["best"]).code == 0


def test_wrong_requests_say_what_to_change(workspace_root):
    for option, words in [
        (["--budget", "soon"], "is no duration"),
        (["--target", "none"], "none"),
        (["--suite", "none"], "none"),
    ]:
        outcome = draftrank(workspace_root, "search", *option)
        assert outcome.code == 2
        assert words in outcome.err
    workspace = Workspace.open(workspace_root)
    with Store.open(workspace.store_url) as store, pytest.raises(InvalidInputError, match="no model"):
        search(workspace, RunRequest("tiny"), 1e-9, store)
