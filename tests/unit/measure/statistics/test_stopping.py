"""What ends a session: precision, prompts that differ too much, the budget or the repeats asked for."""

from __future__ import annotations

import pytest

from builders import result, trial
from draftrank.measure.statistics.log_ratio import LogRatio
from draftrank.measure.statistics.stopping import ArmWidth, narrow_enough, reason_to_stop, spent_s

NARROW = LogRatio(0.3, 0.001, 20)
WIDE = LogRatio(0.3, 0.1, 20)
NONE = LogRatio(0.0, 0.0, 20)


@pytest.mark.parametrize(
    ("arms", "reason"),
    [
        ([ArmWidth(NARROW, None), ArmWidth(NARROW, WIDE)], "target_ci"),
        ([ArmWidth(NARROW, None), ArmWidth(WIDE, None)], None),
        ([ArmWidth(WIDE, WIDE), ArmWidth(NARROW, NONE)], "spread"),
        # One arm's prompts differ too much, but another arm still gains from repeats.
        ([ArmWidth(WIDE, WIDE), ArmWidth(WIDE, NONE)], None),
        ([ArmWidth(None, None, hopeless=True), ArmWidth(NARROW, None)], "spread"),
        ([], "target_ci"),
    ],
)
def test_repeating_ends_when_no_arm_gains_from_it(arms, reason):
    assert narrow_enough(arms, 0.02) == reason


def reason(found, spent=0.0, working=("baseline", "baseline-control", "d")):
    return reason_to_stop(found.session, found.trials, spent, working)


def test_without_a_budget_the_required_repeats_are_all():
    assert reason(result({"d": 2.0}, target_ci=0.0001)) == "repeats"
    assert reason(result({"d": 2.0})) == "repeats"
    assert reason(result({"d": 2.0}, target_ci=0.5)) == "target_ci"


def test_the_budget_counts_what_was_spent_and_not_what_stands():
    found = result({"d": 2.0}, target_ci=0.0001, budget_s=100.0)
    assert spent_s(found.trials) < 100.0
    assert reason(found, spent=spent_s(found.trials)) is None
    assert reason(found, spent=101.0) == "budget"


def test_prompts_that_differ_end_a_session_before_its_budget():
    speeds = {"p0": 1.0, "p1": 2.0, "p2": 3.0, "p3": 4.0}
    found = result(
        {"d": 2.0},
        target_ci=0.05,
        budget_s=1e9,
        change=lambda one: (
            one.model_copy(update={"decode_s": one.decode_s / speeds[one.prompt]}) if one.arm == "d" else one
        ),
    )
    assert reason(found) == "spread"


def test_an_arm_that_broke_does_not_keep_the_others_waiting():
    found = result({"d": 2.0}, target_ci=0.05, budget_s=1e9, drop=lambda one: one.arm == "d")
    assert reason(found, working=("baseline", "baseline-control")) == "target_ci"


def test_seconds_spent_are_those_of_every_attempt():
    again = [trial("d", decode_s=2.0), trial("d", decode_s=2.0, attempt=1)]
    assert spent_s(again) == pytest.approx(2 * 2.05)
