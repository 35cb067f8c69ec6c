"""Tuning k and predicting elsewhere, on a tiny target and through the command."""

from __future__ import annotations

import pytest

from commands import draftrank
from draftrank import RunRequest, Store, Workspace, build_boards, tune_k
from draftrank.errors import InvalidInputError
from draftrank.measure.cost.model import AtK
from draftrank.workflows.tune import candidates, largest_k, variant_of
from workspaces import PLAIN, run_drafts


def test_the_measured_are_the_most_promising_and_the_declared():
    by_k = tuple(
        AtK(k, speedup, 1.0, extrapolated=False) for k, speedup in enumerate([1.0, 3, 2, 5, 4, 0], 1)
    )
    assert candidates(by_k, 6) == (2, 4, 5, 6)
    assert candidates(by_k, 40) == (2, 3, 4, 5)
    assert candidates(by_k[:2], 1) == (1, 2)


def test_of_trees_the_declared_k_is_measured_beside_the_largest_and_its_halves():
    of_tree = AtK(24, 1.5, 3.0, extrapolated=False)  # nothing is predicted for another k
    assert candidates((of_tree,), 24) == (3, 6, 12, 24)
    assert candidates((of_tree,), 20) == (6, 12, 20, 24)
    assert candidates((of_tree,), 40) == (3, 6, 12, 24)


def test_the_largest_k_is_the_recipes_own_where_that_is_above_eight(workspace_root):
    recipe = Workspace.open(workspace_root).recipe("tiny", "shallow")
    assert recipe.speculate.num_speculative_tokens == 3
    assert largest_k(recipe, None) == 8
    assert largest_k(variant_of(recipe, 20), None) == 20
    assert largest_k(variant_of(recipe, 20), 5) == 5


def test_a_draft_is_tuned_by_a_session_of_variants(workspace_root):
    workspace = Workspace.open(workspace_root)
    request = RunRequest("tiny", ("shallow",), **PLAIN)
    tuned = {"max_k": 5, "confidences": (0.2,)}
    with Store.open(workspace.store_url) as store:
        found = tune_k(workspace, request, store, **tuned)
        assert tune_k(workspace, request, store, **tuned) == found  # nothing is measured twice
        sessions = store.sessions()
    assert [at.k for at in found.by_k] == [1, 2, 3, 4, 5]
    assert not any(at.extrapolated for at in found.by_k)
    assert found.declared_k == 3
    names = {variant.arm: variant for variant in found.variants}
    assert "shallow-k3" in names
    assert len(names) == 5
    wary = names["shallow-k5-c0.2"]
    assert (wary.k, wary.stop_below_confidence) == (5, 0.2)
    assert found.best == found.variants[0]
    leading = {variant.arm for variant in (found.best, *found.tied)}
    assert found.keeps == ("shallow-k3" in leading)
    assert found.best.behind_best is None
    assert all(variant.behind_best is not None for variant in found.variants[1:])
    assert all(variant.measured and variant.predicted for variant in found.variants)
    assert set(found.tied) == {one for one in found.variants[1:] if not one.apart}
    # A suite of its own: no board of a declared suite ever holds these rows.
    assert {session.suite for session in sessions} == {"quick-tuning"}
    rows = build_boards([found.session])[0].rows
    command = "draftrank tune-k shallow --target tiny --suite quick --backend transformers --dtype fp32 --device cpu"
    assert {row.reproduce for row in rows} == {command}


def test_a_variant_keeps_the_draft_and_takes_a_valid_name(workspace_root):
    recipe = Workspace.open(workspace_root).recipe("tiny", "shallow")
    other = variant_of(recipe, 7, 0.25)
    assert other.id == "shallow-k7-c0.25"
    assert other.draft == recipe.draft
    long = variant_of(recipe.model_copy(update={"id": "x" * 64}), 12)
    assert len(long.id) == 64
    assert long.id.endswith("-k12")


@pytest.mark.parametrize(
    ("draft", "tuned", "message"),
    [
        ("ngram", {"confidences": (0.3,)}, "kind 'ngram', which has no confidence"),
        ("shallow", {"confidences": (1.5,)}, "1.5 is no probability"),
        ("shallow", {"max_k": 0}, "--max-k: 0 is no number"),
        ("nothing", {}, "no draft 'nothing'"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_measured(workspace_root, draft, tuned, message):
    workspace = Workspace.open(workspace_root)
    with Store.open(workspace.store_url) as store:
        with pytest.raises(InvalidInputError, match=message):
            tune_k(workspace, RunRequest("tiny", (draft,)), store, **tuned)
        assert store.sessions() == ()


def test_a_confident_recipe_runs_and_is_lossless(workspace_root):
    from draftrank import summarise

    path = workspace_root / "drafts" / "tiny" / "early-exit.yaml"
    path.write_text(path.read_text() + "  stop_below_confidence: 0.3\n")
    result = run_drafts(workspace_root, "early-exit")
    (arm,) = (arm for arm in summarise(result).arms if arm.arm.kind == "draft")
    assert arm.fidelity.status == "identical"
    assert arm.arm.draft.recipe["speculate"]["stop_below_confidence"] == 0.3
    sizes = [
        sum(column)
        for column in zip(*(t.proposal_sizes for t in result.trials if t.arm == "early-exit"), strict=True)
    ]
    assert sum(sizes[1:3]) > 0  # it stopped before k = 3 at least once
    assert arm.prediction.speedup > 0


def test_the_commands_tell_what_they_found(measured_root):
    shown = draftrank(measured_root, "show", "shallow", "--json")
    assert "predicted" in shown.out
    assert "best k" in shown.out
    (arm,) = shown.json["arms"]
    assert arm["prediction"]["speedup"] > 0
    machine = shown.json["session"]["machine"]["machine_class"]
    predicted = draftrank(measured_root, "predict", "shallow", "--machine", machine[:-2], "--json")
    assert predicted.code == 0, predicted.err
    assert predicted.json["machine_class"] == machine
    assert predicted.json["predicted_speedup"] == pytest.approx(arm["prediction"]["speedup"])
    assert "if the draft were free" in predicted.out
    unknown = draftrank(measured_root, "predict", "shallow", "--machine", "abacus")
    assert (unknown.code, unknown.out) == (2, "")
    assert machine in unknown.err
    tuned = draftrank(measured_root, "tune-k", "ngram", "--max-k", "2", "--json")
    assert tuned.code == 0, tuned.err
    assert {variant["arm"] for variant in tuned.json["variants"]} == {"ngram-k1", "ngram-k2"}
    assert f"best: {tuned.json['best']['arm']}" in tuned.out
    refused = draftrank(measured_root, "tune-k", "ngram", "--confidence", "0.5")
    assert (refused.code, refused.out) == (2, "")
    assert "--confidence" in refused.err
