"""Contradictions within the records of trials, and between the stopwatch and the time of day."""

from __future__ import annotations

import re

import pytest
from hypothesis import given

from builders import arm_of, one_after_another, result, session, trial
from draftrank.engine.proposers.ngram import NgramDraft
from draftrank.engine.proposers.suffix import SuffixDraft
from draftrank.measure.gates import audit
from draftrank.measure.gates.audit import (
    Ends,
    count_faults,
    output_faults,
    plan_faults,
    prompt_faults,
    time_faults,
)
from draftrank.measure.gates.clocks import holes, overlaps, pause_within
from strategies import session_results

ARM = arm_of("d")
(TASK,) = session([ARM], {"chat": 2}).tasks
HONEST = trial("d", histogram=(1, 0, 1, 1))  # 9 tokens


@given(session_results())
def test_steps_as_an_engine_takes_them_never_contradict_each_other(found):
    arms = {arm.id: arm for arm in found.session.arms}
    for one in found.trials:
        assert list(count_faults(one, arms[one.arm])) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"accept_histogram": (1, 0, 2)}, "3 entries where k\\+1 = 4"),
        ({"offered": (3, 1, 1)}, "more tokens were accepted than offered"),
        ({"offered": (3, 3, 2)}, "offered behind a rejected one"),
        ({"proposed": 6, "draft_forwards": 6}, "6 tokens were proposed but 7 offered"),
        ({"proposed": 10}, "10 tokens were proposed in 3 steps of at most 3"),
        ({"draft_forwards": 13}, "13 forwards of the draft for 9"),
        ({"draft_forwards": 2}, "2 forwards of the draft in 3 steps that proposed"),
        ({"proposal_sizes": (0, 0, 1, 2)}, "9 tokens were proposed but 8 verified"),
    ],
)
def test_counts_that_contradict_each_other(changes, says):
    assert list(count_faults(HONEST, ARM)) == []
    faults = list(count_faults(HONEST.model_copy(update=changes), ARM))
    assert any(re.search(says, fault) for fault in faults), faults


def test_a_stop_token_in_the_last_step_may_cut_what_was_verified():
    cut = HONEST.model_copy(update={"finish": "stop", "proposed": 8, "proposal_sizes": (0, 0, 0, 3)})
    assert list(count_faults(cut, ARM)) == []


@pytest.mark.parametrize(
    ("tokens", "finish", "says"),
    [
        (range(10, 19), "length", None),
        ((5, 6, 2), "stop", None),
        (range(10), "length", "10 tokens where 9 are the limit"),
        (range(8), "length", "after 8 of 9 tokens"),
        ((5, 2, 6), "stop", "goes on behind a stop token"),
        ((5, 6, 7), "stop", "but 7 is none"),
        ((*range(10, 18), 2), "length", "the limit is named"),
    ],
)
def test_outputs_that_do_not_end_as_they_say(tokens, finish, says):
    baseline = [
        trial("baseline").model_copy(update={"token_ids": (7, 5, 8, 2), "finish": "stop"}),
        trial("baseline").model_copy(update={"token_ids": (5, 6, 7)}),
    ]
    output = HONEST.model_copy(update={"token_ids": tuple(tokens), "finish": finish})
    faults = list(output_faults(output, TASK, Ends.seen_in(baseline)))
    assert faults == [] if says is None else any(says in fault for fault in faults)


@pytest.mark.parametrize(
    "changes", [{"propose_s": 0.6}, {"decode_s": 0.0}, {"verify_s": 0.0}, {"prefill_s": 0.0}]
)
def test_times_that_cannot_be(changes):
    assert list(time_faults(HONEST)) == []
    assert list(time_faults(HONEST.model_copy(update=changes)))


def test_trials_outside_the_plan_or_twice():
    assert list(plan_faults([HONEST], [TASK])) == []
    assert "is there twice" in next(plan_faults([HONEST, HONEST], [TASK]))
    for changes in ({"prompt": "p2"}, {"turn": 1}, {"task": "code"}):
        assert "not in its plan" in next(plan_faults([HONEST.model_copy(update=changes)], [TASK]))


def test_prompts_of_another_length():
    longer = HONEST.model_copy(update={"prompt_tokens": 99})
    assert list(prompt_faults([(HONEST, HONEST)])) == []
    assert "99 tokens, the baseline's 12" in next(prompt_faults([(HONEST, longer)]))


def block_trials(**changes):
    """Three arms' trials of real length, four prompts; `changes` of the draft's, by hand afterwards."""
    trials = [
        trial(arm, prompt=f"p{index}", decode_s=2.0, histogram=(0, 0, 0, 2) if arm == "d" else None)
        for index in range(4)
        for arm in ("baseline", "d", "baseline-control")
    ]
    placed = one_after_another(trials)
    return [one.model_copy(update=changes) if one.arm == "d" else one for one in placed]


def test_two_clocks_that_agree():
    assert list(overlaps(block_trials())) == []
    assert list(holes(block_trials())) == []


def test_a_stopwatch_that_ran_ahead_reaches_into_the_next_trial():
    found = {one.arm for one, _ in overlaps(block_trials(decode_s=3.0))}
    assert found == {"d"}


def test_a_stopwatch_that_ran_slow_leaves_time_unseen():
    (found,) = holes(block_trials(decode_s=1.0))
    assert found[0] == "d"
    assert "for 4.00 s that no trial states, beside 4.20 s of its own" in found[1]


def test_a_pause_within_a_block_is_told_and_one_that_is_usual_is_not():
    block = [one for one in block_trials() if one.prompt == "p0"]
    assert pause_within(block) is None
    assert pause_within([one.model_copy(update={"decode_s": 1.0}) for one in block]) is None
    late = [one.model_copy(update={"decode_s": 1.5}) if one.arm == "d" else one for one in block]
    assert pause_within(late) == pytest.approx(0.5, abs=0.05)
    assert pause_within(block[:1]) is None


def test_waits_between_blocks_and_processes_are_nobodys_loss():
    trials = block_trials()
    later = [
        one.model_copy(update={"started_at": one.started_at.replace("T10:", "T12:"), "process": 1})
        for one in trials
        if one.prompt > "p1"
    ]
    kept = [one for one in trials if one.prompt <= "p1"] + later
    assert list(overlaps(kept)) == []
    assert list(holes(kept)) == []


def test_an_unreadable_time_is_a_finding_and_no_crash():
    from draftrank.measure.gates.verdict import judge
    from draftrank.measure.summaries.summary import summarise

    found = result({"d": 2.0}, change=lambda one: one.model_copy(update={"started_at": "noon"}))
    summary = summarise(found)
    assert "unreadable" in judge(summary, summary.arms[-1]).reason


def test_techniques_that_copy_are_named_as_their_proposers_name_them():
    assert {NgramDraft.technique, SuffixDraft.technique} == audit._COPYING
