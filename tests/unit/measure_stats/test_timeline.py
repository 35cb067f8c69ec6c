"""Stated seconds against the times at which trials began."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrank.measure.gates.clocks import seconds_of
from draftrank.measure.gates.timeline import timeline_problems
from draftrank.measure.records import BASELINE, CONTROL, SessionResult
from unit.board.builders import arm_of, session, trial

START = datetime(2026, 11, 1, 10, tzinfo=UTC)
ARMS = (BASELINE, CONTROL, "ngram")


def at(seconds):
    return (START + timedelta(seconds=seconds)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def recorded(seconds, pause=0.01):
    """A session of six prompts; `seconds` gives each arm's decode time."""
    now, trials = 1.0, []
    for index in range(6):
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
            now += taken.prefill_s + taken.decode_s + pause
    header = session([arm_of("ngram")], {"chat": 6}, created_at=at(0), finished_at=at(now))
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
