"""Trials that took oddly long: found, counted, and kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import result
from draftrank.board.as_json import board_document
from draftrank.board.ranking import build_boards
from draftrank.measure.statistics.outliers import flag_outliers
from draftrank.measure.summaries.summary import summarise
from examples import examples


def slow(arm, prompt, task="chat", repeat=0, factor=1.6):
    def change(one):
        hit = (one.arm, one.task, one.prompt, one.repeat) == (arm, task, prompt, repeat)
        return one.model_copy(update={"decode_s": one.decode_s * factor}) if hit else one

    return change


@pytest.mark.parametrize("arm", ["a", "baseline", "baseline-control"])
@pytest.mark.parametrize("factor", [1.6, 0.5])
def test_one_odd_trial_is_flagged_whichever_arm_it_hit(arm, factor):
    found = result({"a": 2.0, "b": 1.0}, change=slow(arm, "p2", factor=factor))
    assert {key[:5] for key in flag_outliers(found.trials)} == {(arm, "chat", "p2", 0, 0)}


def test_steady_sessions_have_none():
    assert flag_outliers(result({"a": 2.0, "b": 1.0}).trials) == frozenset()


def test_a_minute_that_was_slow_for_all_arms_is_no_outlier():
    def change(one):
        return one.model_copy(update={"decode_s": one.decode_s * 3}) if one.prompt == "p1" else one

    assert flag_outliers(result({"a": 2.0}, change=change).trials) == frozenset()


def test_a_prompt_on_which_more_is_accepted_is_no_outlier():
    def change(one):
        if one.arm != "a" or one.prompt != "p1":
            return one
        return one.model_copy(  # as many tokens, in twice as many steps of the same length
            update={"accept_histogram": (0, 4, 0, 0), "steps": 4, "decode_s": one.decode_s * 2}
        )

    assert flag_outliers(result({"a": 2.0, "b": 1.0}, change=change).trials) == frozenset()


def test_few_trials_and_trials_without_steps_are_never_flagged():
    few = result({"a": 2.0}, tasks={"chat": 2}, change=slow("a", "p0", factor=9.0))
    assert flag_outliers(few.trials) == frozenset()
    assert flag_outliers([]) == frozenset()


def test_outliers_are_counted_where_they_lie_and_still_count():
    found = result({"a": 2.0, "b": 1.0}, change=slow("a", "p2", task="math"))
    arm = next(arm for arm in summarise(found).arms if arm.arm.id == "a")
    assert [task.outliers for task in arm.tasks] == [0, 1]
    assert arm.outliers == 1
    (calm,) = (arm for arm in summarise(result({"a": 2.0, "b": 1.0})).arms if arm.arm.id == "a")
    assert arm.speedup.value < calm.speedup.value
    rows = {row["draft"]: row for row in board_document(build_boards([found]))["rows"]}
    assert (rows["a"]["outliers"], rows["b"]["outliers"]) == (1, 0)


@given(st.randoms(use_true_random=False))
@examples(10)
def test_the_order_of_trials_changes_nothing(rng):
    trials = result({"a": 2.0}, change=slow("a", "p0")).trials
    assert flag_outliers(rng.sample(trials, len(trials))) == flag_outliers(trials)
