"""Speedups and their intervals, by law and against simulated truth."""

from __future__ import annotations

import random

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from builders import trial
from draftrank.measure.statistics.estimates import Interval, compare_speed, geometric_mean, pair_trials
from examples import examples

seconds = st.floats(0.01, 10.0)


@st.composite
def paired_arms(draw, least_prompts=1):
    """Two arms that decoded the same cells, with times and token counts of any proportion."""
    baseline, draft = [], []
    for task in range(draw(st.integers(1, 3))):
        for prompt in range(draw(st.integers(least_prompts, 4))):
            for repeat in range(draw(st.integers(1, 2))):
                cell = {"task": f"t{task}", "prompt": f"p{prompt}", "repeat": repeat}
                tokens = draw(st.integers(2, 40))
                baseline.append(trial("baseline", tokens=tokens, decode_s=draw(seconds), **cell))
                draft.append(trial("d", tokens=tokens, decode_s=draw(seconds), **cell))
    return baseline, draft


@given(paired_arms())
@examples(40)
def test_an_arm_against_itself_is_exactly_one(arms):
    comparison = compare_speed(arms[0], arms[0])
    for estimate in (comparison.overall, *comparison.tasks.values()):
        assert estimate.value == 1.0
        assert estimate.interval is None or estimate.interval == Interval(1.0, 1.0)


@given(paired_arms(least_prompts=2))
@examples(40)
def test_halving_all_seconds_of_a_draft_doubles_its_speedup(arms):
    baseline, draft = arms
    faster = [found.model_copy(update={"decode_s": found.decode_s / 2}) for found in draft]
    before, after = (compare_speed(baseline, of) for of in (draft, faster))
    assert after.overall.value == pytest.approx(2 * before.overall.value)
    assert after.overall.interval.low == pytest.approx(2 * before.overall.interval.low)
    assert after.overall.interval.high == pytest.approx(2 * before.overall.interval.high)
    for task, estimate in before.tasks.items():
        assert after.tasks[task].value == 2 * estimate.value


@given(paired_arms(least_prompts=2), st.randoms(use_true_random=False))
@examples(30)
def test_the_order_of_trials_changes_nothing(arms, rng):
    baseline, draft = arms
    shuffled = [rng.sample(of, len(of)) for of in arms]
    assert compare_speed(baseline, draft) == compare_speed(*shuffled)


@given(paired_arms(least_prompts=2))
@examples(40)
def test_intervals_hold_their_value_and_are_ordered(arms):
    comparison = compare_speed(*arms)
    for estimate in (comparison.overall, *comparison.tasks.values()):
        assert estimate.interval.low <= estimate.value <= estimate.interval.high


def test_a_task_speedup_is_the_ratio_of_sums_not_the_mean_of_ratios():
    baseline = [
        trial("b", prompt="p0", tokens=11, decode_s=1.0),
        trial("b", prompt="p1", tokens=101, decode_s=9.0),
    ]
    draft = [
        trial("d", prompt="p0", tokens=11, decode_s=1.0),
        trial("d", prompt="p1", tokens=101, decode_s=3.0),
    ]
    comparison = compare_speed(baseline, draft)
    assert comparison.tasks["chat"].value == pytest.approx((10 / 110) / (4 / 110))


def test_tokens_count_and_not_only_seconds():
    # A sampled output may be longer than the baseline's: half the time for half the tokens is no gain.
    baseline = [trial("b", prompt=prompt, tokens=21, decode_s=2.0) for prompt in ("p0", "p1")]
    draft = [trial("d", prompt=prompt, tokens=11, decode_s=1.0) for prompt in ("p0", "p1")]
    assert compare_speed(baseline, draft).overall.value == pytest.approx(1.0)


def test_overall_is_the_geometric_mean_over_tasks():
    baseline = [trial("b", task=task, prompt=p) for task in ("a", "b") for p in ("p0", "p1")]
    draft = [
        trial("d", task=task, prompt=p, decode_s=s)
        for task, s in (("a", 0.25), ("b", 1.0))
        for p in ("p0", "p1")
    ]
    comparison = compare_speed(baseline, draft)
    assert comparison.tasks["a"].value == 4.0
    assert comparison.overall.value == pytest.approx(2.0)


def test_only_cells_that_both_arms_have_are_compared():
    baseline = [trial("b", prompt="p0"), trial("b", prompt="p1", decode_s=100.0), trial("b", prompt="p2")]
    draft = [
        trial("d", prompt="p0"),
        trial("d", prompt="p2"),
        trial("d", prompt="p2", repeat=1, decode_s=50.0),
    ]
    comparison = compare_speed(baseline, draft)
    assert comparison.cells == 2
    assert comparison.overall.value == 1.0
    assert [first.prompt for first, _ in pair_trials(baseline, draft)] == ["p0", "p2"]


def test_one_prompt_gives_a_value_without_an_interval():
    baseline = [trial("b", task="a", prompt=p) for p in ("p0", "p1")] + [trial("b", task="z")]
    draft = [trial("d", task="a", prompt=p, decode_s=0.5) for p in ("p0", "p1")] + [trial("d", task="z")]
    comparison = compare_speed(baseline, draft)
    assert comparison.tasks["z"].interval is None
    assert comparison.tasks["a"].interval is not None
    assert comparison.overall.interval is None


def test_nothing_decoded_is_no_speedup():
    short = [trial("b", prompt=p, tokens=1, decode_s=0.0) for p in ("p0", "p1")]
    assert compare_speed(short, short).overall is None
    assert compare_speed([], []).overall is None
    # One such prompt among others must not spoil the interval with undefined draws.
    arm = [*short, *(trial("b", prompt=p) for p in ("p2", "p3", "p4"))]
    assert compare_speed(arm, arm).overall.interval == Interval(1.0, 1.0)


@pytest.mark.parametrize(("baseline_s", "draft_s"), [(1e6, 5e-324), (5e-324, 1e6)])
def test_times_beyond_the_range_of_floats_give_no_speedup(baseline_s, draft_s):
    baseline = [trial("b", prompt=p, decode_s=baseline_s) for p in ("p0", "p1")]
    draft = [trial("d", prompt=p, decode_s=draft_s) for p in ("p0", "p1")]
    assert compare_speed(baseline, draft).overall is None


def test_repeats_of_one_prompt_do_not_narrow_the_interval():
    rng = random.Random(2)
    cells = [(f"p{index}", rng.uniform(0.2, 1.0)) for index in range(8)]

    def arms(repeats):
        return (
            [trial("b", prompt=p, repeat=r) for p, _ in cells for r in range(repeats)],
            [trial("d", prompt=p, repeat=r, decode_s=s) for p, s in cells for r in range(repeats)],
        )

    once, often = (compare_speed(*arms(repeats)).overall.interval for repeats in (1, 16))
    assert often.half_width == pytest.approx(once.half_width)


def test_small_spreads_give_the_textbook_interval():
    # For small spreads the overall speedup is all but linear, so its interval is Welch's for a mean over
    # tasks: standard error √(Σ s²/n) / tasks, degrees of freedom by Satterthwaite's formula.
    rng = random.Random(1)
    baseline, draft, variances = [], [], []
    for task in range(10):
        own = [1 + rng.gauss(0, 0.002) for _ in range(3)]
        variances.append(np.var(own, ddof=1) / 3)
        for index, factor in enumerate(own):
            cell = {"task": f"t{task}", "prompt": f"p{index}"}
            baseline.append(trial("b", decode_s=1.0, **cell))
            draft.append(trial("d", decode_s=factor, **cell))
    freedom = sum(variances) ** 2 / sum(variance**2 / 2 for variance in variances)
    expected = scipy.stats.t.ppf(0.975, freedom) * np.sqrt(sum(variances)) / 10
    overall = compare_speed(baseline, draft).overall
    assert overall.log.freedom == pytest.approx(freedom, rel=0.01)
    assert overall.interval.half_width == pytest.approx(expected, rel=0.01)


def test_two_prompts_far_apart_say_very_little():
    baseline = [trial("b", prompt=p) for p in ("p0", "p1")]
    draft = [trial("d", prompt=p, decode_s=s) for p, s in (("p0", 0.5), ("p1", 0.8))]
    interval = compare_speed(baseline, draft).overall.interval
    assert interval.low < 0.2
    assert interval.high > 10


def test_an_interval_without_bounds_is_none():
    baseline = [trial("b", prompt=p) for p in ("p0", "p1")]
    draft = [trial("d", prompt=p, decode_s=s) for p, s in (("p0", 1e-60), ("p1", 1e60))]
    estimate = compare_speed(baseline, draft).overall
    assert estimate.value > 0
    assert estimate.interval is None


def test_geometric_mean_of_nothing_is_unknown():
    assert geometric_mean([]) is None
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)


def test_touching_intervals_are_not_apart():
    assert not Interval(1.0, 2.0).above(Interval(0.5, 1.0))
    assert Interval(1.1, 2.0).above(Interval(0.5, 1.0))
