"""What one change to a recipe is worth, from drafts of one board."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import arm_of, build, result
from draftrank.board.effects import FIRST_COPY, MODEL_BEHIND, TREE, changes_among, effects_of
from draftrank.board.ranking import build_boards
from draftrank.board.site import render_site
from draftrank.catalog.workspace import Workspace
from draftrank.measure.statistics.comparing import compare
from examples import examples
from workspaces import REPOSITORY

STEPS = [
    {"kind": "drop_layers", "keep": 4, "select": "ends"},
    {"kind": "prune_ffn", "keep_channels": 768},
    {"kind": "trim_vocabulary", "keep_tokens": 8192},
    {"kind": "sparsify", "method": "wanda", "sparsity": 0.5},
    {"kind": "quantize", "scheme": "dynamic_int8"},
]


def recipe(steps=(), kind="draft_model", **changes):
    draft = {"kind": kind} | ({} if kind == "ngram" else {"steps": list(steps)})
    return build("x").recipe | {"draft": draft} | changes


def arm(name, made):
    return arm_of(name, draft=build(name, recipe=made | {"title": f"The draft {name}"}))


def changed(recipes):
    return {(before, after): change.technique for before, after, change in changes_among(recipes)}


@examples(60)
@given(
    steps=st.lists(st.integers(0, 4), min_size=2, unique=True).map(
        lambda chosen: [STEPS[index] for index in sorted(chosen)]
    ),
    place=st.integers(0, 4),
)
def test_a_step_more_is_found_wherever_it_stands(steps, place):
    place %= len(steps)
    less = steps[:place] + steps[place + 1 :]
    found = list(changes_among({"with": recipe(steps), "without": recipe(less)}))
    assert [(before, after) for before, after, _ in found] == [("without", "with")]
    assert list(changes_among({"one": recipe(steps), "two": recipe(steps)})) == []
    assert list(changes_among({"all": recipe(steps), "none": recipe(less[:-1])})) == []


def test_a_draft_that_copies_first_is_set_beside_both_of_its_halves():
    recipes = {
        "both": recipe(STEPS[:2], "cascade"),
        "model": recipe(STEPS[:2]),
        "copies": recipe(kind="ngram"),
        "other": recipe(STEPS[:1]),
    }
    found = changed(recipes)
    assert found["model", "both"] == FIRST_COPY
    assert found["copies", "both"] == MODEL_BEHIND
    assert found["other", "model"] == "width pruning"
    assert len(found) == 3


def test_a_tree_is_set_beside_the_same_draft_with_chains():
    chain = recipe(STEPS[:2])
    tree = chain | {"speculate": {"num_speculative_tokens": 9, "branch_above_probability": 0.1}}
    assert changed({"chain": chain, "tree": tree}) == {("chain", "tree"): TREE}
    assert not changed({"tree": tree, "less": recipe(STEPS[:1])})


def test_findings_say_whether_the_answers_agree():
    plain, narrow, sparse, both = (
        recipe(STEPS[index] for index in which) for which in ([0], [0, 1], [0, 3], [0, 1, 3])
    )
    arms = [arm("plain", plain), arm("narrow", narrow), arm("sparse", sparse), arm("both", both)]
    speeds = {"plain": 1.0, "narrow": 1.5, "sparse": 0.7, "both": 0.5}
    measured = result(speeds, arms=arms, tasks={"chat": 6, "math": 6})
    found = {one.technique: one for one in effects_of(build_boards([measured]))}
    assert found["sparsity"].finding == "slower in 2 of 2 pairs, faster in none"
    assert found["sparsity"].holds
    assert found["width pruning"].finding == "faster in 1, slower in 1 of 2 pairs: it depends on the draft"
    assert not found["width pruning"].holds
    assert len(found["sparsity"].targets) == 1


def test_another_number_of_tokens_is_no_change_but_a_lossy_rule_is():
    one, two = recipe(STEPS[:1]), recipe(STEPS[:2])
    assert changed({"one": one, "two": two | {"speculate": {"num_speculative_tokens": 9}}})
    lossy = two | {"speculate": {"num_speculative_tokens": 3, "typical_acceptance": {"epsilon": 0.3}}}
    assert not changed({"one": one, "two": lossy})
    unknown = recipe([{"kind": "of_tomorrow"}])
    assert not changed({"one": recipe(), "two": unknown})


def test_effects_are_ratios_of_the_same_prompts_and_say_when_one_cannot_tell():
    plain, narrow, sparse = recipe(STEPS[:1]), recipe(STEPS[:2]), recipe([STEPS[0], STEPS[3]])
    arms = [arm("plain", plain), arm("narrow", narrow), arm("sparse", sparse)]
    measured = result({"plain": 1.0, "narrow": 1.5, "sparse": 1.0}, arms=arms, tasks={"chat": 6, "math": 6})
    found = {one.technique: one for one in effects_of(build_boards([measured]))}
    assert found.keys() == {"width pruning", "sparsity"}
    (narrowing,) = found["width pruning"].effects
    own = compare([measured], "narrow", "plain").overall
    assert narrowing.ratio.value == pytest.approx(own.value)
    assert narrowing.ratio.interval.low == pytest.approx(own.interval.low)
    assert narrowing.ratio.answer == "faster"
    assert narrowing.side_by_side
    assert (narrowing.before.draft, narrowing.after.draft) == ("plain", "narrow")
    assert found["width pruning"].count("faster") == 1
    assert found["sparsity"].count("can't tell") == 1


def test_drafts_of_two_sessions_are_compared_less_surely_and_the_surer_pair_stands():
    plain, narrow = recipe(STEPS[:1]), recipe(STEPS[:2])
    arms = [arm("plain", plain), arm("narrow", narrow)]
    apart = [
        result({"plain": 1.0}, arms=arms[:1]),
        result({"narrow": 1.5}, arms=arms[1:], id="20261102-b"),
    ]
    together = result({"plain": 1.0, "narrow": 1.5}, arms=arms)
    (alone,), (shared,) = (
        [one for found in effects_of(build_boards(results)) for one in found.effects]
        for results in (apart, [together])
    )
    assert not alone.side_by_side
    assert shared.side_by_side
    assert alone.ratio.value == pytest.approx(shared.ratio.value, rel=0.02)
    other = together.model_copy(
        update={"session": together.session.model_copy(update={"id": "20261103-c", "suite": "core"})}
    )
    (both,) = (one for found in effects_of(build_boards([*apart, other])) for one in found.effects)
    narrowest = min((alone, shared), key=lambda one: one.ratio.interval.high / one.ratio.interval.low)
    assert both.side_by_side == narrowest.side_by_side


def test_the_study_shows_them_and_links_to_the_drafts(tmp_path):
    arms = [arm("plain", recipe(STEPS[:1])), arm("narrow", recipe(STEPS[:2]))]
    results = [result({"plain": 1.0, "narrow": 1.5}, arms=arms)]
    render_site(build_boards(results), tmp_path / "site")
    page = (tmp_path / "site" / "study.html").read_text()
    assert "width pruning" in page
    assert "<strong>width pruning</strong>: faster in 1 of 1 pair, slower in none" in page
    (size,) = [line for line in page.splitlines() if 'class="on-light"' in line]
    drawn = size.split('src="')[1].split('"')[0]
    assert (tmp_path / "site" / drawn).is_file()
    assert "The draft narrow" in page
    render_site([], tmp_path / "empty")
    assert "differ in one thing" in (tmp_path / "empty" / "study.html").read_text()


def test_an_eagle_draft_is_compared_with_the_cascade_that_has_it_and_with_its_own_quantization():
    workspace = Workspace.open(REPOSITORY)
    names = ("eagle3-head", "eagle3-suffix", "eagle3-suffix-int8", "suffix", "ngram")
    found = changed(
        {
            name: workspace.recipe("smollm2-135m-instruct", name).model_dump(mode="json", exclude_none=True)
            for name in names
        }
    )
    assert found["eagle3-head", "eagle3-suffix"] == FIRST_COPY
    assert found["ngram", "eagle3-suffix"] == MODEL_BEHIND
    assert ("eagle3-suffix", "eagle3-suffix-int8") in found
