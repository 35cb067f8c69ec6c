"""Figures of a session, computed from trials whose sums are known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import arm_of, result, session, trial
from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.measure.cost.acceptance import sum_acceptance
from draftrank.measure.evidence import Divergence, Judgement, Numerics, Reference
from draftrank.measure.records import SessionResult
from draftrank.measure.summaries.summary import summarise

histograms = st.integers(1, 6).flatmap(
    lambda k: st.lists(st.lists(st.integers(0, 9), min_size=k + 1, max_size=k + 1), min_size=1, max_size=4)
)


def arm(found, name):
    return next(summary for summary in found.arms if summary.arm.id == name)


@given(histograms)
def test_acceptance_length_lies_between_one_and_k_plus_one(rows):
    acceptance = sum_acceptance(trial("d", histogram=tuple(row)) for row in rows)
    k = len(rows[0]) - 1
    assert acceptance.length is None or 1 <= acceptance.length <= k + 1
    assert all(share is None or 0 <= share <= 1 for share in acceptance.by_position)
    assert acceptance.rate is None or 0 <= acceptance.rate <= 1


def test_acceptance_is_a_ratio_of_sums():
    long, short = trial("d", histogram=(90, 0, 0)), trial("d", histogram=(0, 0, 10))
    acceptance = sum_acceptance([long, short])
    assert acceptance.histogram == (90, 0, 10)
    assert acceptance.length == pytest.approx(120 / 100)
    assert acceptance.rate == pytest.approx(20 / 200)
    assert acceptance.by_position == (0.1, 1.0)


def test_a_position_that_was_never_reached_has_no_rate():
    assert sum_acceptance([trial("d", histogram=(5, 0, 0))]).by_position == (0.0, None)


def test_autoregressive_decoding_has_length_one():
    assert sum_acceptance([trial("baseline", tokens=30)]).length == 1.0


def test_a_session_of_known_speed():
    found = summarise(result({"fast": 2.0, "slow": 0.5}))
    assert arm(found, "fast").speedup.value == pytest.approx(2.0, rel=0.03)
    assert arm(found, "slow").speedup.value == pytest.approx(0.5, rel=0.03)
    assert found.baseline.speedup.value == 1.0
    assert found.noise.overall.value == pytest.approx(1.0, rel=0.03)
    assert arm(found, "fast").timing.tokens_per_second == pytest.approx(20.0, rel=0.03)
    assert arm(found, "fast").missing == 0
    assert arm(found, "fast").planned == 16
    assert [task.task for task in arm(found, "fast").tasks] == ["chat", "math"]


def test_shares_of_decode_time_add_up():
    timing = arm(summarise(result({"d": 2.0})), "d").timing
    assert timing.propose_share == pytest.approx(0.25)
    assert timing.verify_share == pytest.approx(0.5)
    assert timing.propose_share + timing.verify_share + timing.other_share == pytest.approx(1.0)
    assert timing.prefill_s == pytest.approx(0.05)


def test_draft_cost_sets_like_contexts_against_each_other():
    latencies = [("target", 64, 0.1), ("target", 512, 0.2), ("draft", 512, 0.02), ("draft", 2048, 0.5)]
    latency = arm_of("d").latencies[0]
    timed = tuple(
        latency.model_copy(update={"part": part, "context": context, "median_s": median})
        for part, context, median in latencies
    )
    many = latency.model_copy(update={"tokens": 4, "median_s": 9.0})
    found = summarise(result({"d": 2.0}, arms=[arm_of("d", latencies=(*timed, many))]))
    assert arm(found, "d").draft_cost == pytest.approx(0.1)


def test_draft_cost_of_a_draft_without_forwards_is_its_proposing_time():
    target_only = arm_of("d", latencies=arm_of("d").latencies[:1])
    found = summarise(
        result(
            {"d": 2.0},
            arms=[target_only],
            change=lambda one: one.model_copy(
                update={"draft_forwards": 0, "decode_s": 0.8, "propose_s": 0.02}
            ),
        )
    )
    assert arm(found, "d").draft_cost == pytest.approx((0.02 / 2) / 0.1)  # two steps per trial


def test_draft_cost_is_unknown_without_latencies():
    found = summarise(result({"d": 2.0}, arms=[arm_of("d", latencies=())]))
    assert arm(found, "d").draft_cost is None


def test_missing_cells_of_the_arm_or_of_the_baseline_are_counted():
    found = summarise(
        result(
            {"a": 2.0, "b": 2.0},
            drop=lambda one: one.arm == "a" and one.prompt == "p1" and one.task == "math",
        )
    )
    assert (arm(found, "a").missing, arm(found, "b").missing) == (2, 0)
    found = summarise(result({"a": 2.0}, drop=lambda one: one.arm == "baseline" and one.prompt == "p1"))
    assert arm(found, "a").missing == 4


def test_all_turns_are_planned():
    plain = session([arm_of("d")], {"chat": 2})
    turns = plain.model_copy(update={"tasks": (plain.tasks[0].model_copy(update={"turns": (1, 3)}),)})
    found = summarise(SessionResult(session=turns, trials=()))
    assert arm(found, "d").planned == 2 * (1 + 3)
    assert arm(found, "d").missing == 8


def test_an_arm_without_trials_has_no_figures():
    found = summarise(result({"d": 2.0}, drop=lambda one: one.arm == "d"))
    summary = arm(found, "d")
    assert summary.speedup is None
    assert summary.acceptance.length is None
    assert summary.timing.tokens_per_second is None
    assert summary.timing.propose_share is None
    assert summary.fidelity.status == "not compared"


def test_sampling_is_not_compared():
    found = summarise(result({"d": 2.0}, mode=DecodingMode(temperature=1.0)))
    assert arm(found, "d").fidelity.status == "not compared"


def test_no_control_arm_means_no_noise_floor():
    assert summarise(result({"d": 2.0}, drop=lambda one: one.arm == "baseline-control")).noise is None


def test_a_disturbed_attempt_gives_way_to_the_next_as_a_whole():
    calm = result({"d": 2.0})
    disturbed = [
        trial.model_copy(update={"decode_s": 100.0}) for trial in calm.trials if trial.prompt == "p0"
    ]
    again = [
        trial.model_copy(update={"attempt": 1}) if trial.prompt == "p0" else trial for trial in calm.trials
    ]
    both = SessionResult(session=calm.session, trials=(*disturbed, *again))
    assert arm(summarise(both), "d").speedup == arm(summarise(calm), "d").speedup
    cut = [trial for trial in both.trials if not (trial.attempt and trial.arm == "d")]
    assert arm(summarise(SessionResult(session=calm.session, trials=tuple(cut))), "d").missing == 0


@pytest.mark.parametrize(
    ("kind", "backend", "status"),
    [
        ("reference", "transformers", "breaks"),
        ("reference", "cpp", "unjudged"),
        ("reference", "cuda-graphs", "unjudged"),
        ("draft", "cpp", "breaks"),
    ],
)
def test_transformers_is_judged_by_the_rounding_of_its_own_kernels_only(kind, backend, status):
    judgement = Judgement(divergence=Divergence(index=0, gap=0.04, baseline_gap=0.0))
    exact = Numerics(positions=500, forward_tokens=(4,), quantiles=(0.0,) * 101)

    def leave(one):
        if one.arm != "other":
            return one
        return one.model_copy(update={"token_ids": (9, *one.token_ids[1:]), "judgement": judgement})

    ran = Reference(implementation="transformers 5.17.0", method="generate", draft=None, differs=())
    changed = {"kind": kind, "reference": ran if kind == "reference" else None}
    other = arm_of("other").model_copy(update=changed)
    found = summarise(
        result({"other": 0.5}, arms=[other], change=leave, backend=backend, dtype="bf16", numerics=exact)
    )
    assert arm(found, "other").fidelity.status == status
    assert {task.fidelity.status for task in arm(found, "other").tasks} == {status}
