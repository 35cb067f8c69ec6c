"""Joining the parts of sessions."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrank.errors import StoreError
from draftrank.measure.records import BASELINE, CONTROL, SessionResult
from draftrank.store.merging import in_order, join, merge
from examples import examples
from records import a_result, a_session, a_trial, an_arm
from strategies import session_results


def part(result, *drafts, **changes):
    """What is left of a session when only these drafts had been measured."""
    names = {BASELINE, CONTROL, *drafts}
    arms = tuple(arm for arm in result.session.arms if arm.id in names)
    return SessionResult(
        session=result.session.model_copy(update={"arms": arms, **changes}),
        trials=tuple(trial for trial in result.trials if trial.arm in names),
    )


@examples(25)
@given(session_results(min_drafts=1, max_drafts=3), st.randoms(use_true_random=False))
def test_parts_make_the_whole_again_in_any_order_and_number(result, chance: random.Random):
    drafts = [arm.id for arm in result.session.arms if arm.kind == "draft"]
    parts = [part(result, draft) for draft in drafts] + [part(result, *chance.sample(drafts, 1)), result]
    chance.shuffle(parts)
    assert merge(parts) == [in_order(result)]


@given(
    st.lists(st.lists(st.sampled_from("abc"), unique=True).map(tuple), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
def test_warnings_of_differing_parts_do_not_depend_on_the_order_of_the_parts(warnings, chance):
    parts = [part(a_result(drafts=("a", "b")), chance.choice("ab"), warnings=found) for found in warnings]
    (one,) = merge(parts)
    chance.shuffle(parts)
    cut = chance.randint(0, len(parts))
    assert merge([*merge(parts[:cut]), *merge(parts[cut:])]) == [one]
    assert set(one.session.warnings) == set().union(*warnings)
    if len(set(warnings)) == 1:
        assert one.session.warnings == warnings[0], "as the session gave them"


@examples(25)
@given(session_results(), st.randoms(use_true_random=False))
def test_the_canonical_form_depends_on_the_content_alone(result, chance: random.Random):
    arms, trials = list(result.session.arms), list(result.trials)
    chance.shuffle(arms)
    chance.shuffle(trials)
    shuffled = SessionResult(
        session=result.session.model_copy(update={"arms": tuple(arms)}), trials=tuple(trials)
    )
    assert in_order(shuffled) == in_order(result) == in_order(in_order(result))
    assert set(in_order(result).trials) == set(result.trials)


def test_different_sessions_stay_apart_and_the_oldest_comes_first():
    old, new = a_result("2026-03-01-aaaa"), a_result("2026-03-02-bbbb")
    assert merge([new, old, new]) == [in_order(old), in_order(new)]
    assert merge([]) == []


def test_what_only_one_part_knows_is_taken():
    result = a_result(drafts=("a", "b"))
    one = part(result, "a", warnings=("x", "y"))
    other = part(result, "b", warnings=("y", "z"), finished_at="2026-03-01T11:00:00Z")
    joined = join(one, other)
    assert joined.session.warnings == ("x", "y", "z")
    assert joined.session.finished_at == "2026-03-01T11:00:00Z"
    assert [arm.id for arm in joined.session.arms] == [BASELINE, CONTROL, "a", "b"]
    assert set(joined.trials) == set(result.trials)
    assert join(other, one).session.finished_at == "2026-03-01T11:00:00Z"


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (a_result(seed=8), "its seed"),
        (a_result(target="another", seed=8), "its target, seed"),
        (a_result(finished_at="2026-03-01T12:00:00Z"), "its finished_at"),
        (a_result(arms=(*a_session().arms[:2], an_arm("ngram-2", failure="x"))), "the arm 'ngram-2'"),
        (
            SessionResult(session=a_result().session, trials=(a_trial(BASELINE, decode_s=9.0),)),
            "the trial of arm 'baseline', task 'chat', prompt 'p1', turn 0, repeat 0",
        ),
    ],
)
def test_parts_that_contradict_each_other_are_refused_by_name(other, named):
    first = a_result(finished_at="2026-03-01T11:00:00Z")
    if "finished_at" not in named:
        first = a_result()
    with pytest.raises(StoreError, match=f"session 2026-03-01-aaaa: two of its parts differ in {named} "):
        merge([first, other])
