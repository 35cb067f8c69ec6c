"""Parity from records: figures against an independent computation, and every verdict."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from draftrank.measure.parity import Output, report_of
from parities import a_parity, a_turn, parted


def test_lengths_ratios_and_intervals_are_those_of_an_independent_computation():
    rng = random.Random(3)
    rows = {
        task: [(rng.randint(20, 60), rng.randint(8, 15), rng.randint(8, 15)) for _ in range(prompts)]
        for task, prompts in (("code", 5), ("math", 4))
    }
    turns = [
        a_turn(task, f"p{number}", *row) for task, found in rows.items() for number, row in enumerate(found)
    ]
    report = report_of(a_parity(turns))

    variances, freedoms, logs = [], [], []
    for task, found in rows.items():
        tokens, here, there = np.array(found, dtype=float).T
        lengths = report.tasks[task]
        assert lengths.here == pytest.approx(tokens.sum() / here.sum())
        assert lengths.there == pytest.approx(tokens.sum() / there.sum())
        count = len(found)
        left = [
            math.log(np.delete(here, index).sum() / np.delete(there, index).sum()) for index in range(count)
        ]
        variance = (count - 1) / count * sum((one - np.mean(left)) ** 2 for one in left)
        value = math.log(here.sum() / there.sum())
        reach = stats.t.ppf(0.975, count - 1) * math.sqrt(variance)
        assert lengths.ratio.value == pytest.approx(math.exp(value))
        assert lengths.ratio.interval.low == pytest.approx(math.exp(value - reach))
        assert lengths.ratio.interval.high == pytest.approx(math.exp(value + reach))
        logs.append(value)
        variances.append(variance / 4)
        freedoms.append(count - 1)
    freedom = sum(variances) ** 2 / sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
    reach = stats.t.ppf(0.975, freedom) * math.sqrt(sum(variances))
    overall = report.overall.ratio
    assert overall.value == pytest.approx(math.exp(np.mean(logs)))
    assert overall.interval.high == pytest.approx(math.exp(np.mean(logs) + reach))
    every = np.array([row for found in rows.values() for row in found], dtype=float).sum(axis=0)
    assert report.overall.here == pytest.approx(every[0] / every[1])
    assert report.speeds.plain_there == pytest.approx(20.0)
    assert report.speeds.draft_here == pytest.approx(every[0] / (0.2 * every[1]))


def test_equal_steps_hold_without_any_doubt():
    report = report_of(a_parity([a_turn(prompt=f"p{number}") for number in range(4)]))
    assert (report.verdict, report.reasons) == ("holds", ())
    found = report.overall.ratio
    assert (found.value, found.interval.low, found.interval.high) == (1.0, 1.0, 1.0)
    assert report.outputs.sentence() == report.target.sentence() == "identical"


def test_a_ratio_near_one_does_not_hold_while_its_interval_reaches_far():
    """One step more of sixty: a head with exchanged norms did this on three prompts."""
    turns = [a_turn(prompt=f"p{number}", tokens=23, here=20 - number % 2, there=20) for number in range(3)]
    report = report_of(a_parity(turns))
    assert abs(report.overall.ratio.value - 1) < 0.02
    assert report.verdict == "undecided"
    assert "may lie more than 2 %" in report.reasons[0]


def test_a_draft_that_is_accepted_less_there_fails():
    turns = [a_turn(prompt=f"p{number}", tokens=30, here=10, there=27 + number % 3) for number in range(6)]
    report = report_of(a_parity(turns))
    assert report.verdict == "fails"
    assert "acceptance length there lies more than 2 %" in report.reasons[0]


def test_a_ratio_that_a_few_prompts_cannot_tell_from_one_is_undecided():
    turns = [a_turn(prompt="p0", here=5, there=9), a_turn(prompt="p1", here=9, there=6)]
    assert report_of(a_parity(turns)).verdict == "undecided"
    assert report_of(a_parity([a_turn(here=5, there=9)])).verdict == "undecided"  # one prompt has no interval


@pytest.mark.parametrize("field", ["draft_divergence", "plain_divergence"])
def test_outputs_may_differ_by_rounding_and_by_nothing_else(field):
    tie = report_of(a_parity([parted(3, 5e-5, field=field), a_turn(prompt="p1")]))
    broken = report_of(a_parity([parted(3, 0.2, field=field), a_turn(prompt="p1")]))
    assert (tie.verdict, broken.verdict) == ("holds", "fails")
    told = (tie.outputs, broken.outputs) if field == "draft_divergence" else (tie.target, broken.target)
    assert told[0].sentence() == "1 of 2 differ by rounding (numerical ties)"
    assert told[1].sentence() == "1 of 2 differ, 1 beyond rounding"


def test_counts_that_contradict_an_output_fail_and_are_named():
    odd = Output(steps=5, decode_s=1.0, disagreement="it counts 9 tokens, and 12 came")
    report = report_of(a_parity([a_turn(draft_there=odd), a_turn(prompt="p1")]))
    assert report.verdict == "fails"
    assert report.disagreements == ("code/p0: it counts 9 tokens, and 12 came",)


def test_a_record_that_does_not_add_up_is_refused():
    with pytest.raises(ValidationError, match="12 steps for 11 tokens"):
        a_turn(there=12)
    with pytest.raises(ValidationError, match="plain_there has 10 steps"):
        a_turn(plain_there=Output(steps=10, decode_s=1.0))
    with pytest.raises(ValidationError, match="does not fit the token_ids"):
        a_turn(draft_there=Output(token_ids=(0, 1, 7), steps=1, decode_s=1.0))
    with pytest.raises(ValidationError, match="states no token_ids"):
        a_turn(plain_here=Output(steps=3, decode_s=1.0))
