"""The intervals in use, judged by sessions whose truth is known; `docs/simulation.md` has the large runs."""

from __future__ import annotations

import numpy as np
import pytest

from builders import trial
from draftrank.measure.records import BASELINE, CONTROL
from draftrank.measure.statistics.estimates import compare_speed
from simulation.coverage import cover_methods, cover_stopping, speedup_after
from simulation.interval_methods import METHODS
from simulation.sessions import Scenario, draw_session, truth

QUICK = (3, 3, 3, 2)


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(QUICK),
        Scenario(QUICK, prompt_spread=0.3, skewed=True, outliers=0.01),
        Scenario((6,) * 6, length_gain=0.5, length_spread=0.5, lasting=0.95, drift=0.5),
        Scenario((16,) * 8),
    ],
    ids=["quick", "quick-skewed", "between", "core"],
)
def test_intervals_hold_the_truth_as_often_as_they_say(scenario):
    found = cover_methods(scenario, 500, 7, {"in use": METHODS["jackknife t"]})["in use"]
    # 95 % give or take 1 point that the method may miss by, and 2.5 standard errors of 500 sessions.
    assert 0.915 <= found.overall.value <= 0.99
    assert found.called_different.value <= 0.075


def test_percentiles_of_two_or_three_prompts_are_far_too_narrow():
    found = cover_methods(Scenario(QUICK), 300, 7)
    assert set(found) == set(METHODS)
    assert found["sums, bootstrap"].overall.value < 0.88
    assert found["sums, bootstrap"].called_different.value > 0.08


@pytest.mark.parametrize(
    ("scenario", "precision"),
    [
        (Scenario(QUICK, 8, drafts=(1.3, 1.1), prompt_spread=0.02, noise=0.05), 0.05),
        (Scenario((6,) * 4, 8, drafts=(1.3, 1.1), prompt_spread=0.03, noise=0.06), 0.03),
    ],
)
def test_stopping_at_the_first_narrow_interval_does_no_harm(scenario, precision):
    found = cover_stopping(scenario, precision, required=1, sessions=300, seed=7)
    assert found.reasons["target_ci"] > 100
    assert found.drafts.value >= 0.92
    assert found.called_different.value <= 0.085


def test_drafts_whose_prompts_differ_stop_early_and_noise_does_not():
    spread = Scenario((6,) * 4, 8, drafts=(1.3, 1.1), prompt_spread=0.3)
    noisy = Scenario((6,) * 4, 8, drafts=(1.3, 1.1), prompt_spread=0.0, noise=0.3)
    assert cover_stopping(spread, 0.02, 1, 40, 7).reasons["spread"] >= 30
    assert cover_stopping(noisy, 0.02, 1, 40, 7).reasons["spread"] <= 4


def test_the_truth_is_what_endless_prompts_would_give():
    for scenario in (
        Scenario((40_000, 40_000), length_gain=0.5, prompt_spread=0.3),
        Scenario((40_000, 40_000), skewed=True, prompt_spread=0.3),
    ):
        session = draw_session(scenario, np.random.default_rng(0))
        for first, second in ((BASELINE, "d0"), ("d0", BASELINE), (BASELINE, CONTROL)):
            found = speedup_after(session, first, second)
            true = np.mean([*truth(scenario, first, second).values()])
            assert found.value == pytest.approx(true, abs=0.01)


def test_the_simulation_counts_as_the_statistics_of_real_trials_do():
    scenario = Scenario(QUICK, repeats=2)
    session = draw_session(scenario, np.random.default_rng(3))
    prompts = [(f"t{task}", f"p{index}") for task, count in enumerate(QUICK) for index in range(count)]
    arms = {
        arm: [
            trial(
                arm,
                task=task,
                prompt=prompt,
                repeat=repeat,
                tokens=1 + int(session.tokens[row]),
                decode_s=float(session.seconds[row, repeat, column]),
            )
            for row, (task, prompt) in enumerate(prompts)
            for repeat in range(2)
        ]
        for column, arm in enumerate(scenario.arms)
    }
    found = compare_speed(arms[BASELINE], arms["d0"]).overall.log
    simulated = speedup_after(session, BASELINE, "d0")
    assert found.value == pytest.approx(simulated.value)
    assert found.standard_error == pytest.approx(simulated.standard_error)
    assert found.freedom == pytest.approx(simulated.freedom)


def test_equal_seeds_draw_equal_sessions():
    first, second, other = (
        draw_session(Scenario(QUICK, outliers=0.1), np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert (first.seconds == second.seconds).all()
    assert (first.seconds != other.seconds).any()
