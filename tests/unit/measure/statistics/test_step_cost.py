"""The cost of a step, published and run again: how often honest results are contradicted, and false ones."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from builders import result
from draftrank.measure.gates.timeline import timeline_problems
from draftrank.measure.records import SessionResult
from draftrank.measure.statistics.step_cost import (
    MACHINE_FREEDOM,
    MACHINE_SPREAD,
    MIN_PROMPTS_ALIKE,
    between_machines,
    compare_step_costs,
)
from draftrank.measure.summaries.recheck import check_step_cost
from draftrank.store.bundle import read_bundle
from draftrank.store.bundle_reading import bundle_result
from forging import scale_seconds, version_2
from simulation.coverage import cover_verifying
from simulation.sessions import Scenario
from workspaces import REPOSITORY

RESULTS = REPOSITORY / "leaderboard" / "results"
DRAFT = "ngram"


def scaled(found: SessionResult, arms: set[str], factor: float, *, hide: bool = False) -> SessionResult:
    data = version_2(found)
    scale_seconds(data, arms, factor, hide=hide)
    return bundle_result(data, "forged")


def measured(**changes):
    return result({DRAFT: 1.5}, repeats=1, **changes)


def test_the_ratio_is_that_of_the_seconds_and_speed_of_the_machine_is_no_matter():
    published = measured()
    faster = scaled(published, {"baseline", "baseline-control", DRAFT}, 0.6)
    dearer = scaled(faster, {DRAFT}, 1.25)
    for again, ratio in ((published, 1.0), (faster, 1.0), (dearer, 1.25)):
        cost, prompts = compare_step_costs(published, again, DRAFT)
        assert prompts == 8
        assert cost.ratio == pytest.approx(ratio)
    assert check_step_cost(published, faster, DRAFT).status == "holds"
    assert check_step_cost(published, dearer, DRAFT).status == "fails"
    assert check_step_cost(dearer, published, DRAFT).status == "holds"  # nobody gains by it


def test_a_published_time_cut_by_a_twentieth_fails_and_by_a_fiftieth_may_be_another_machine():
    honest = measured()
    assert check_step_cost(scaled(honest, {DRAFT}, 0.95), honest, DRAFT).status == "fails"
    assert check_step_cost(scaled(honest, {DRAFT}, 0.98), honest, DRAFT).status == "holds"
    slowed = scaled(honest, {"baseline", "baseline-control"}, 1.06)
    assert check_step_cost(slowed, honest, DRAFT).status == "fails"


def test_only_prompts_of_equal_work_count():
    published = measured()

    def another_output(trial):
        other = trial.arm == DRAFT and trial.task == "chat"
        return trial.model_copy(update={"token_ids": (7,) * 9, "decode_s": 50.0}) if other else trial

    cost, prompts = compare_step_costs(published, measured(change=another_output), DRAFT) or (None, 0)
    assert (cost, prompts) == (None, 0)  # four are left
    large = measured(tasks={"chat": 4, "math": 6})
    cost, prompts = compare_step_costs(
        large, measured(tasks={"chat": 4, "math": 6}, change=another_output), DRAFT
    )
    assert prompts == 6
    assert cost.ratio == pytest.approx(1.0)
    longer = measured(tasks={"chat": 8}, histogram=(2, 0, 0, 2))
    assert compare_step_costs(measured(tasks={"chat": 8}), longer, DRAFT) is None


def test_few_prompts_say_nothing():
    few = measured(tasks={"chat": MIN_PROMPTS_ALIKE - 1})
    check = check_step_cost(few, few, DRAFT)
    assert check.status == "skipped"
    assert "fewer than 5 prompts" in check.detail


def test_the_error_holds_the_spread_of_prompts_and_that_of_machines():
    logs = np.random.default_rng(1).normal(0.02, 0.1, 40)
    logs[0] = 3.0  # a trial that hung
    found = between_machines(logs.tolist())
    assert found.value == pytest.approx(stats.trim_mean(logs, 0.1))
    winsorized = np.asarray(stats.mstats.winsorize(logs, (0.1, 0.1)))
    own = winsorized.std(ddof=1) / (0.8 * math.sqrt(40)) * math.sqrt(39 / 40 * 32 / 31)
    assert found.standard_error == pytest.approx(math.hypot(own, MACHINE_SPREAD))
    freedom = (own**2 + MACHINE_SPREAD**2) ** 2 / (own**4 / 31 + MACHINE_SPREAD**4 / MACHINE_FREEDOM)
    assert found.freedom == pytest.approx(freedom)


NOISY = {"noise": 0.06, "lasting_noise": 0.04, "repeats": 2}


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario((3, 3, 3, 2), **NOISY),
        Scenario((4,) * 8, **NOISY),
        Scenario((16,) * 8, outliers=0.01, **NOISY),
    ],
    ids=["quick", "sample", "core"],
)
def test_another_machine_of_the_class_is_seldom_contradicted(scenario):
    assert cover_verifying(scenario, 0.0, 500, 7).value <= 0.05


def test_a_tenth_is_found_nearly_always_and_a_twentieth_as_often_as_machines_permit():
    sample, quiet = Scenario((4,) * 8, **NOISY), Scenario((4,) * 8, repeats=2)
    assert cover_verifying(sample, 0.1, 300, 7).value >= 0.95
    assert cover_verifying(quiet, 0.1, 300, 7).value >= 0.99
    assert cover_verifying(sample, 0.05, 300, 7).value >= 0.4
    assert cover_verifying(quiet, 0.05, 300, 7).value >= 0.7


def test_what_other_machines_published_agrees_and_a_tenth_less_does_not():
    """Real sessions of one engine on different hosts of a class, hours to days apart."""
    honest, forged = [], []
    for target in ("smollm2-135m-instruct", "gemma-3-270m"):
        found = [read_bundle(path) for path in sorted((RESULTS / target / "suffix").glob("*bf16-2c/*.json"))]
        for published, again in permutations(found, 2):
            if published.session.backend == again.session.backend == "cpp":
                honest.append(check_step_cost(published, again, "suffix").status)
                cut = scaled(published, {"suffix"}, 0.9)
                forged.append(check_step_cost(cut, again, "suffix").status)
                assert timeline_problems(published) == []
                assert "the clock goes on for 1" in " ".join(timeline_problems(cut))
    assert len(honest) >= 6
    assert set(honest) == {"holds"}
    assert set(forged) == {"fails"}
