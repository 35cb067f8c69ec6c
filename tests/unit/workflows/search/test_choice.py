"""What a search may choose, and the speedup that is predicted for it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrank.building.surgery.eagle_head import published_layers
from draftrank.catalog.self_generated import SelfGenerated
from draftrank.errors import BuildError
from draftrank.measure.cost.forward_times import ForwardTimes
from draftrank.workflows.search.choice import (
    RUNGS,
    Begun,
    Choice,
    DraftSettings,
    Shape,
    copying_recipes,
    passes_of,
    recipe_of,
)
from draftrank.workflows.search.tried import DEAR, most_copied, predict_speedup
from examples import examples

SHAPE = Shape(layers=30, ffn_channels=1536, vocabulary=49_152)
DATA = SelfGenerated(kind="self_generated", tokens=10_000, sequence_tokens=128)
vocabularies = st.sampled_from([None, 8_192])
choices = st.one_of(
    st.builds(
        Choice,
        layers=st.sampled_from([1, 2, 4]),
        vocabulary=vocabularies,
        ffn_channels=st.sampled_from([None, 768]),
    ),
    st.builds(Choice, layers=st.none(), vocabulary=vocabularies),
)
uses = st.builds(
    DraftSettings,
    k=st.integers(1, 8),
    cascade=st.booleans(),
    int8=st.booleans(),
    stop_below_confidence=st.sampled_from([None, 0.4]),
    tree=st.booleans(),
)


def times(draft_s: float, slope: float = 0.0) -> ForwardTimes:
    target = tuple((float(size), 1.0 + slope * (size - 1)) for size in range(1, 12))
    return ForwardTimes(((256, target),), ((256, ((1.0, draft_s), (2.0, draft_s))),))


@examples(60)
@given(agreement=st.floats(0.0, 0.99), cost=st.floats(0.0, 1.0), most=st.integers(1, 8))
def test_the_prediction_is_the_speedup_of_leviathan_et_al_at_its_best_k(agreement, cost, most):
    expected = {k: (1 - agreement ** (k + 1)) / (1 - agreement) / (k * cost + 1) for k in range(1, most + 1)}
    found = predict_speedup([agreement], times(cost), 256, most)
    assert found.speedup == pytest.approx(max(expected.values()))
    assert expected[found.k] == pytest.approx(found.speedup)


@examples(60)
@given(slope=st.floats(0.0, 1.0), least=st.integers(1, 5), more=st.integers(0, 5))
def test_copied_tokens_are_as_many_as_little_more_than_one_forward_verifies(slope, least, more):
    found = most_copied(times(0.1, slope), 256, least, least + more)
    assert least <= found <= least + more
    assert found == least or 1 + slope * found <= DEAR
    assert found == least + more or 1 + slope * (found + 1) > DEAR


def test_later_tokens_have_an_agreement_of_their_own_and_verifying_costs():
    equal = predict_speedup([0.7, 0.7], times(0.05), 256, 4)
    assert predict_speedup([0.7, 0.4], times(0.05), 256, 4).speedup < equal.speedup
    assert predict_speedup([0.7, 0.7], times(0.05, slope=0.1), 256, 4).speedup < equal.speedup
    assert predict_speedup([0.7, 0.0], times(0.05), 256, 4).k == 1


@examples(60)
@given(choice=choices, use=uses)
def test_every_choice_is_a_valid_recipe_and_longer_training_goes_on_from_shorter(choice, use):
    rungs = [choice.steps(SHAPE, DATA, rung) for rung in (1, 2, 3)]
    for shorter, longer in pairwise(rungs):
        assert longer[: len(shorter)] == shorter
    for rung, steps in enumerate(rungs, start=1):
        recipe = recipe_of("tiny", use.name_of(choice), "Searched", steps, use)
        training = [step for step in recipe.draft.build_steps if step.kind == "distill"]
        assert sum(step.passes for step in training) == passes_of(choice, rung)
        assert recipe.draft.build_steps[-1].kind == ("quantize" if use.int8 else "distill")
        alone = "draft_model" if choice.layers else "eagle"
        assert recipe.draft.kind == ("cascade" if use.cascade else alone)
        assert recipe.draft.build_steps[0].kind == ("drop_layers" if choice.layers else "eagle_head")
        assert (recipe.speculate.branch_above_probability is not None) == use.tree
        if not use.tree:
            assert recipe.speculate.stop_below_confidence == use.stop_below_confidence


@pytest.mark.parametrize("depth", range(2, 40))
def test_an_eagle3_head_reads_states_that_its_target_has(depth):
    head = Choice(layers=None, vocabulary=None)
    assert head.fits(Shape(depth, ffn_channels=1536, vocabulary=49_152))
    (step, *_) = head.steps(Shape(depth, 1536, 49_152), DATA, 1)
    named = step.get("aux_hidden_states")
    if named is None:
        assert len(published_layers(depth)) == 3
    else:
        assert named == sorted(set(named))
        assert all(1 <= index < depth for index in named)
        with pytest.raises(BuildError):
            published_layers(depth)


@examples(60)
@given(st.tuples(choices, uses), st.tuples(choices, uses))
def test_a_name_stands_for_one_model_and_one_way_to_use_it(first, second):
    (one, use), (other, another) = first, second
    same = (one, use.cascade, use.int8, use.tree) == (other, another.cascade, another.int8, another.tree)
    assert (use.name_of(one) == another.name_of(other)) == same


@examples(60)
@given(choice=choices, use=uses, rung=st.integers(1, 3))
def test_what_a_recipe_has_trained_goes_on_from_all_of_its_steps(choice, use, rung):
    recipe = recipe_of("tiny", "mine", "Mine", choice.steps(SHAPE, DATA, rung), use)
    begun = Begun.of(recipe)
    assert begun is not None
    as_it_is = begun.steps(SHAPE, DATA, RUNGS)
    plain = recipe_of("tiny", begun.id, "As it is", as_it_is, DraftSettings(1))
    trained = [step for step in recipe.draft.build_steps if step.kind != "quantize"]
    assert list(plain.draft.build_steps) == trained
    longer = begun.steps(SHAPE, DATA, RUNGS + 2)
    assert longer[: len(as_it_is)] == as_it_is
    added = [step["passes"] for step in longer[len(as_it_is) :]]
    assert len(added) == 2
    assert sum(added) == passes_of(begun, RUNGS + 2)


def test_what_trains_nothing_leaves_nothing_to_go_on_from():
    assert all(Begun.of(recipe) is None for recipe in copying_recipes("tiny"))
    cut = recipe_of(
        "tiny", "cut", "Cut", [{"kind": "drop_layers", "keep": 2, "select": "ends"}], DraftSettings(1)
    )
    assert Begun.of(cut) is None


def test_copying_alone_takes_recipes_without_a_model():
    recipes = copying_recipes("tiny")
    assert [recipe.draft.kind for recipe in recipes] == ["ngram", "suffix"]
    for recipe in recipes:
        assert not recipe.draft.has_weights
        assert recipe.effort == "minutes"
