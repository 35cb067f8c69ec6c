"""The interval of served speedups, judged by rounds whose truth is known; `docs/simulation.md` has the large runs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from simulation.serving import (
    SERVING_METHODS,
    ServingScenario,
    cover_latencies,
    cover_serving,
    draw_rounds,
)

SIX = ServingScenario()
IN_USE = {"in use": SERVING_METHODS["paired t"]}


@pytest.mark.parametrize(
    "scenario",
    [
        SIX,
        replace(SIX, drift=0.5),
        replace(SIX, lasting=0.95, lasting_noise=0.04),
        replace(SIX, drafts=8, blocks=4),
    ],
    ids=["usual", "drift", "autocorrelated", "few-rounds"],
)
def test_intervals_hold_the_truth_as_often_as_they_say(scenario):
    found = cover_serving(scenario, 1000, 7, IN_USE)["in use"]
    # 95 % give or take 1 point that the method may miss by, and 2.5 standard errors of 1,000 sessions.
    assert 0.922 <= found.overall.value <= 0.978
    assert found.called_different.value <= 0.077


def test_in_a_fixed_order_they_do_not():
    found = cover_serving(replace(SIX, order="ABBA"), 400, 7, IN_USE)["in use"]
    assert found.overall.value < 0.9


def test_other_methods_are_too_narrow_or_too_wide():
    found = cover_serving(SIX, 300, 7)
    assert found["paired, bootstrap"].overall.value < 0.92
    assert np.median(found["unpaired t"].half_widths) > 1.5 * np.median(found["paired t"].half_widths)
    varied = cover_serving(replace(SIX, draft_noise=0.05, drift=0.05), 300, 7)
    assert varied["joint fit"].overall.value < 0.9 < varied["paired t"].overall.value


def test_the_truth_is_what_rounds_without_noise_give():
    quiet = replace(SIX, noise=1e-9, lasting_noise=0.0, drift=0.0)
    rounds = draw_rounds(quiet, "plan", np.random.default_rng(0))
    for method in SERVING_METHODS.values():
        low, high = method(rounds, rounds.logs.shape[1] - 1, np.random.default_rng(0))
        assert low == pytest.approx(math.log(1.3), abs=1e-6)
        assert high == pytest.approx(math.log(1.3), abs=1e-6)


def test_a_latencys_median_is_held_as_often_as_stated():
    assert cover_latencies(6, 32, 300, 7).median.value >= 0.9
