"""Stated seconds against the times at which trials began."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import arm_of, session, trial
from draftrank.measure.gates.clocks import seconds_of
from draftrank.measure.gates.timeline import timeline_problems
from draftrank.measure.records import BASELINE, CONTROL, SessionResult

START = datetime(2026, 11, 1, 10, tzinfo=UTC)
ARMS = (BASELINE, CONTROL, "ngram")


def at(seconds):
    return (START + timedelta(seconds=seconds)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def recorded(seconds, pause=0.01, prompts=9):
    """A session of so many prompts; `seconds` gives each arm's decode time."""
    now, trials = 1.0, []
    for index in range(prompts):
        order = ARMS[index % 3 :] + ARMS[: index % 3]
        for position, arm in enumerate(order):
            histogram = (5, 1, 0, 0) if arm == "ngram" else None
            taken = trial(
                arm,
                prompt=f"p{index}",
                position=position,
                started_at=at(now),
                decode_s=seconds[arm],
                histogram=histogram,
            )
            trials.append(taken)
            now += taken.prefill_s + taken.decode_s + (pause(arm, index) if callable(pause) else pause)
    header = session([arm_of("ngram")], {"chat": prompts}, created_at=at(0), finished_at=at(now))
    return SessionResult(session=header, trials=tuple(trials))


def scaled(result, arm, factor):
    names = ("decode_s", "propose_s", "verify_s")
    trials = [
        one.model_copy(update={name: getattr(one, name) * factor for name in names})
        if one.arm == arm
        else one
        for one in result.trials
    ]
    return result.model_copy(update={"trials": tuple(trials)})


@given(
    st.fixed_dictionaries({arm: st.floats(0.001, 100.0) for arm in ARMS}),
    st.floats(0.0, 3.0),
    st.randoms(use_true_random=False),
)
def test_what_was_measured_one_after_the_other_fits(seconds, pause, order):
    result = recorded(seconds, pause)
    shuffled = list(result.trials)
    order.shuffle(shuffled)
    assert timeline_problems(result.model_copy(update={"trials": tuple(shuffled)})) == []


@pytest.mark.parametrize(
    ("arm", "factor", "told"),
    [
        (BASELINE, 1.3, "of baseline took 2.650 s, but the next began"),
        ("ngram", 1.3, "of ngram took"),
        ("ngram", 0.5, "after trials of ngram the clock went on for"),
        ("ngram", 0.9, "the clock goes on for 11.1% of each trial of ngram after it states to have ended"),
        ("ngram", 0.95, "the clock goes on for 5.3% of each trial of ngram"),
        (BASELINE, 1.02, "trials of baseline reach 0.030 s into the next one"),
    ],
)
def test_seconds_that_were_changed_afterwards_do_not_fit(arm, factor, told):
    result = recorded(dict.fromkeys(ARMS, 2.0))
    assert told in "; ".join(timeline_problems(scaled(result, arm, factor)))


def test_a_turn_that_was_decoded_again_because_of_a_pause_counts_as_it_was_then():
    """The first attempt at the first prompt is half a second longer between two of its trials."""
    result = recorded(dict.fromkeys(ARMS, 0.2))
    later = [
        one.model_copy(update={"started_at": at(seconds_of(one.started_at) - START.timestamp() + 3.5)})
        for one in result.trials
    ]
    first = [
        one.model_copy(update={"started_at": at(1.0 + 0.26 * place + 0.5 * bool(place))})
        for place, one in enumerate(result.trials[:3])
    ]
    again = [one.model_copy(update={"attempt": 1}) for one in later[:3]]
    header = result.session.model_copy(update={"finished_at": at(60)})
    alone = SessionResult(session=header, trials=(*first, *later[3:]))
    assert "the clock went on" in timeline_problems(alone)[0]
    healed = SessionResult(session=header, trials=(*first, *again, *later[3:]))
    assert timeline_problems(healed) == []


def test_a_part_is_no_longer_than_the_whole_and_no_trial_is_outside_its_session():
    result = recorded(dict.fromkeys(ARMS, 2.0))
    first, *others = result.trials
    longer = first.model_copy(update={"verify_s": 2.5})
    assert "its parts took" in timeline_problems(result.model_copy(update={"trials": (longer, *others)}))[0]
    for change, told in (({"created_at": at(3)}, "before"), ({"finished_at": at(9)}, "after")):
        header = result.session.model_copy(update=change)
        assert f"{told} its session" in timeline_problems(result.model_copy(update={"session": header}))[0]


def test_a_time_that_is_none_is_said():
    result = recorded(dict.fromkeys(ARMS, 2.0))
    header = result.session.model_copy(update={"finished_at": "later"})
    assert "later" in timeline_problems(result.model_copy(update={"session": header}))[0]


def test_processes_have_clocks_of_their_own_and_a_pause_between_prompts_is_nothing():
    result = recorded(dict.fromkeys(ARMS, 2.0))
    half = len(result.trials) // 2
    later = [one.model_copy(update={"process": 1}) for one in result.trials[half:]]
    resumed = result.model_copy(update={"trials": (*result.trials[:half], *later)})
    assert timeline_problems(resumed) == []


def test_gaps_that_vary_as_they_do_on_a_busy_machine_are_nobodys_fault():
    """A journal on a slow disk: 5 to 60 ms, now and then a second, whatever the arm."""
    for seed in range(20):
        chance = random.Random(seed)
        result = recorded(
            {BASELINE: 0.5, CONTROL: 0.5, "ngram": 0.2},
            lambda *_: chance.uniform(0.005, 0.06) + (chance.random() < 0.02),  # noqa: B023
            prompts=48,
        )
        assert not [told for told in timeline_problems(result) if "goes on for" in told or "reach" in told]


def test_few_gaps_say_nothing_of_what_is_usual():
    result = scaled(recorded(dict.fromkeys(ARMS, 2.0), prompts=6), "ngram", 0.95)
    assert timeline_problems(result) == []  # the draft stands before another arm four times


def test_attempts_that_do_not_count_leave_no_holes():
    result = recorded(dict.fromkeys(ARMS, 2.0))
    disturbed = [
        one.model_copy(update={"process": 1, "decode_s": 0.5, "verify_s": 0.25, "propose_s": 0.0})
        for one in result.trials
    ]
    again = [one.model_copy(update={"attempt": 1}) for one in result.trials]
    assert timeline_problems(result.model_copy(update={"trials": (*disturbed, *again)})) == []
