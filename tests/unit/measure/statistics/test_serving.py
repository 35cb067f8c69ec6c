"""Figures of serving sessions against their known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from draftrank.measure.statistics.estimates import Interval
from draftrank.measure.statistics.serving import (
    acceptance_of,
    compare_rounds,
    latency_of,
    mean_log_ratio,
    standing_rounds,
    switch_off,
    throughput_of,
)
from draftrank.measure.summaries.serving import summarise_serving
from servings import a_serving, an_arm, slowed, with_requests

TRUE = {1: 1.3, 4: 1.05, 16: 0.9}


def arm_of(summary, name):
    return next(found for found in summary.arms if found.arm.id == name)


def test_speedups_come_out_as_they_were_put_in():
    summary = summarise_serving(a_serving({"ngram": TRUE}, noise=0.0))
    for concurrency, cell in arm_of(summary, "ngram").cells.items():
        assert cell.speedup.value == pytest.approx(TRUE[concurrency], rel=1e-4)
        assert cell.speedup.interval.low <= TRUE[concurrency] * 1.0001
        assert summary.noise(concurrency).value == pytest.approx(1.0, rel=1e-4)


def test_with_noise_the_interval_is_that_of_the_paired_log_ratios():
    result = a_serving({"ngram": 1.3}, noise=0.03)
    found = arm_of(summarise_serving(result), "ngram").cells[4].speedup
    rate = {(one.arm, one.index): one.tokens / one.wall_s for one in result.rounds if one.concurrency == 4}
    logs = np.log([rate["ngram", index] / rate["baseline", index] for index in range(6)])
    reach = 2.570582 * logs.std(ddof=1) / math.sqrt(6)  # t of 5 degrees of freedom
    assert found.value == pytest.approx(math.exp(logs.mean()))
    assert found.interval.low == pytest.approx(math.exp(logs.mean() - reach))
    assert found.interval.high == pytest.approx(math.exp(logs.mean() + reach))


def test_throughput_leaves_out_failed_requests_and_not_their_time():
    one = a_serving(rounds=1).rounds[0]
    last = len(one.requests) - 1

    def fail(request):
        if request.turn != last:
            return request
        return request.model_copy(update={"end": "failed", "failure": "broken off"})

    failed = with_requests(one, fail)
    assert throughput_of([failed]) == pytest.approx((one.tokens - one.requests[last].tokens) / one.wall_s)
    assert throughput_of([]) is None


def test_latencies_are_those_of_all_requests():
    summary = summarise_serving(a_serving({"ngram": 2.0}, noise=0.0))
    plain, draft = (arm_of(summary, name).cells[4] for name in ("baseline", "ngram"))
    assert plain.tpot.median.value == pytest.approx(0.03 * slowed(4), rel=1e-3)
    assert draft.tpot.median.value == pytest.approx(0.015 * slowed(4), rel=1e-3)
    assert draft.ttft.p99.value == pytest.approx(0.04 * slowed(4) * 1.2, rel=1e-3)
    assert draft.per_user == pytest.approx(1 / draft.tpot.median.value)


def test_quantiles_and_their_intervals():
    found = latency_of([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert (found.median.value, found.p99.value) == (3.0, 6.0)
    reach = 4.302653 * np.log([1.0, 3.0, 5.0]).std(ddof=1) / math.sqrt(3)  # t of 2 degrees of freedom
    assert found.median.interval.low == pytest.approx(3.0 * math.exp(-reach))
    assert found.median.interval.high == pytest.approx(3.0 * math.exp(reach))
    assert latency_of([[1.0, 2.0]]).median.interval is None
    assert latency_of([[], []]) is None


def test_acceptance_is_tokens_by_steps_after_the_first_from_either_source():
    rounds = [one for one in a_serving().rounds if one.arm == "ngram"]
    decoded = sum(request.tokens - 1 for one in rounds for request in one.requests)
    steps = sum(len(request.arrivals_us) - 1 for one in rounds for request in one.requests)
    found = acceptance_of(rounds)
    assert found.by_request
    assert found.length == pytest.approx(decoded / steps)
    assert found.rate == pytest.approx((decoded - steps) / (3 * steps))
    without = [
        with_requests(one, lambda r: r.model_copy(update={"accepted": None, "proposed": None}))
        for one in rounds
    ]
    counted = acceptance_of(without)
    assert not counted.by_request
    assert counted.length == pytest.approx(found.length)
    assert acceptance_of([one.model_copy(update={"counters": None}) for one in without]) is None


def test_of_a_block_measured_again_the_last_full_attempt_counts():
    result = a_serving(rounds=2)
    again = [
        one.model_copy(update={"attempt": 1, "wall_s": 2 * one.wall_s})
        for one in result.rounds
        if one.index == 1
    ]
    cut_short = [one.model_copy(update={"attempt": 2}) for one in again if one.arm == "baseline"]
    found = standing_rounds([*result.rounds, *again, *cut_short])
    assert {one.attempt for one in found[4, 0].values()} == {0}
    assert {one.attempt for one in found[4, 1].values()} == {1}


def test_rounds_of_different_blocks_are_never_paired():
    summary = summarise_serving(
        a_serving(change=lambda one: None if (one.arm, one.index) == ("baseline", 2) else one)
    )
    cell = arm_of(summary, "ngram").cells[1]
    assert len(cell.rounds) == 6
    assert [(first.index, second.index) for first, second in cell.pairs] == [(i, i) for i in (0, 1, 3, 4, 5)]


def test_a_single_pair_gives_no_interval():
    assert mean_log_ratio([]) is None
    assert mean_log_ratio([0.1]).interval is None
    assert compare_rounds([]) is None
    assert mean_log_ratio([0.1, 0.1]).interval == Interval(math.exp(0.1), math.exp(0.1))


UP, EVEN, DOWN = Interval(1.1, 1.2), Interval(0.95, 1.05), Interval(0.8, 0.9)


@pytest.mark.parametrize(
    ("speedups", "at", "words"),
    [
        ({1: UP, 4: UP, 16: UP}, None, "beyond 16"),
        ({1: UP, 4: UP, 16: DOWN}, 16, "between 4 and 16"),
        ({1: UP, 4: EVEN, 16: DOWN}, 4, "between 1 and 16"),
        ({1: UP, 4: EVEN, 16: EVEN}, 4, "beyond 1, unclear at 4 and 16"),
        ({1: DOWN, 4: DOWN}, 1, "never pays"),
        ({1: EVEN, 4: DOWN}, 1, "no sure gain, unclear at 1"),
        ({1: UP, 4: EVEN, 16: UP}, 4, "beyond 16, unclear at 4"),
        ({1: DOWN, 4: UP, 16: DOWN}, 1, "between 4 and 16, not at 1"),
        ({1: UP, 4: None}, None, "beyond 1"),
        ({1: None}, None, "unknown"),
    ],
)
def test_the_switch_off_point_and_its_uncertainty(speedups, at, words):
    found = switch_off(speedups)
    assert (found.at, found.words) == (at, words)


def test_energy_and_memory():
    def measured(one):
        return one.model_copy(update={"energy_j": 2.0 * one.tokens})

    summary = summarise_serving(a_serving(change=measured))
    cell = arm_of(summary, "ngram").cells[1]
    assert cell.energy_per_token_j == pytest.approx(2.0)
    assert cell.memory_bytes == 1_700_000_000
    half = summarise_serving(a_serving(change=lambda one: measured(one) if one.index else one))
    assert arm_of(half, "ngram").cells[1].energy_per_token_j is None


def test_a_draft_of_several_k_has_an_arm_for_each():
    summary = summarise_serving(
        a_serving(
            {"ngram-k2": 1.2, "ngram-k5": 1.4},
            arms={"ngram-k2": an_arm("ngram-k2", 2), "ngram-k5": an_arm("ngram-k5", 5)},
        )
    )
    assert {found.arm.draft_id for found in summary.arms if found.arm.kind == "draft"} == {"ngram"}
