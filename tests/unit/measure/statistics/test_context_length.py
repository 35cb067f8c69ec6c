"""Figures by context length: only lengths that every task has, and those of the trials of that length."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import result, slowed, trial
from draftrank.measure.records import BASELINE
from draftrank.measure.statistics.context_length import octave_of, shown_octaves
from draftrank.measure.summaries.summary import summarise

LENGTHS = (990, 1_010, 1_030, 1_050, 3_900, 4_000, 4_100, 4_200)
"""Prompt tokens of the prompts p0 to p7."""


def measured(lengths=LENGTHS, short=("chat", "math"), **changes):
    """A session in which the prompts of every task in `short` have these lengths, and the draft `d` loses half of its speed
    on the long ones."""
    found = result(
        {"d": 2.0},
        tasks={"chat": 8, "math": 8},
        histogram=(1, 0, 1, 1),
        change=lambda one: one.model_copy(
            update={"prompt_tokens": lengths[int(one.prompt[1:])] if one.task in short else 40}
        ),
        **changes,
    )
    return slowed(found, lambda one: 2.0 if (one.arm, one.prompt_tokens > 2_000) == ("d", True) else 1.0)


def lengths_of(found, name="d"):
    return next(arm for arm in summarise(found).arms if arm.arm.id == name).lengths


def speedup(found, task, first, last):
    """Of the draft over the baseline in a task, over the prompts of such lengths."""
    own = [one for one in found.trials if one.task == task and first <= one.prompt_tokens <= last]
    rate = {
        arm: sum(one.decode_s for one in own if one.arm == arm)
        / sum(len(one.token_ids) - 1 for one in own if one.arm == arm)
        for arm in (BASELINE, "d")
    }
    return rate[BASELINE] / rate["d"]


def test_each_length_has_the_speedup_and_the_acceptance_of_its_own_trials():
    found = measured()
    short, long = lengths_of(found)
    assert (short.prompt_tokens, short.prompts) == (1_020, 8)
    assert (long.prompt_tokens, long.prompts) == (4_050, 8)
    for at, first, last in ((short, 0, 2_000), (long, 2_000, 9_000)):
        expected = math.sqrt(speedup(found, "chat", first, last) * speedup(found, "math", first, last))
        assert at.speedup.value == pytest.approx(expected, rel=1e-12)
        assert at.speedup.interval.contains(expected)
        assert at.acceptance.length == pytest.approx(8 / 3)  # 3 steps accept 0, 2 and 3 tokens
        assert at.acceptance.steps == 3 * 8 * found.session.repeats
    assert long.speedup.value == pytest.approx(short.speedup.value / 2, rel=0.05)
    for at in lengths_of(found, BASELINE):
        assert at.acceptance.length == 1.0


@pytest.mark.parametrize(
    ("lengths", "short"),
    [
        pytest.param((1_000,) * 8, ("chat", "math"), id="one length"),
        pytest.param(LENGTHS, ("chat",), id="a task has no such prompts"),
        pytest.param((1_000,) * 5 + (4_000,) * 3, ("chat", "math"), id="too few long prompts"),
    ],
)
def test_lengths_that_not_every_task_has_are_not_compared(lengths, short):
    assert lengths_of(measured(lengths, short)) == ()


def test_an_arm_without_trials_of_a_length_has_no_figure_for_it():
    found = measured(drop=lambda one: one.arm == "d" and int(one.prompt[1:]) >= 4)
    assert [at.prompt_tokens for at in lengths_of(found)] == [1_020]


@given(st.integers(1, 10**6))
def test_a_prompt_belongs_to_the_nearest_power_of_two(tokens):
    octave = octave_of(trial("d", prompt_tokens=tokens))
    others = [abs(math.log2(tokens) - other) for other in (octave - 1, octave + 1)]
    assert abs(math.log2(tokens) - octave) <= min(others)


def test_without_prompts_there_are_no_lengths():
    assert shown_octaves([], ["chat"]) == ()
    assert shown_octaves([trial(BASELINE, prompt_tokens=0)], ["chat"]) == ()
