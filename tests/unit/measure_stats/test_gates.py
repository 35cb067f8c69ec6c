"""Each gate, failed and passed, and what it tells the reader."""

from __future__ import annotations

import re

import pytest

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.measure.evidence import Conditions, SamplingCheck
from draftrank.measure.gates import GATES, judge
from draftrank.measure.summary import summarise
from unit.board.builders import arm_of, result


def verdict(found, name="d"):
    summary = summarise(found)
    return judge(summary, next(arm for arm in summary.arms if arm.arm.id == name))


def spoil(one):
    """Changes one token of one of the draft's outputs."""
    if one.arm != "d" or (one.task, one.prompt, one.repeat) != ("math", "p1", 0):
        return one
    return one.model_copy(update={"token_ids": (*one.token_ids[:4], 7, *one.token_ids[5:])})


def spread(one):
    """Makes the baseline's twin three times as slow on one prompt and faster on another."""
    factor = {"p0": 3.0, "p1": 0.4}.get(one.prompt, 1.0) if one.arm == "baseline-control" else 1.0
    return one.model_copy(update={"decode_s": one.decode_s * factor})


def check(p_value):
    return SamplingCheck(task="math", prompt="p0", draws=200, bins=9, statistic=30.0, p_value=p_value)


def under(**conditions):
    """Lets every trial of one prompt in four run under these conditions, the others on a calm machine."""

    def change(one):
        found = Conditions(**conditions) if one.prompt == "p1" else Conditions(others_cpus=0.02)
        return one.model_copy(update={"conditions": found})

    return change


FAILING = {
    "failed": (
        result({}, arms=[arm_of("d", draft=None, failure="out of {memory}")]),
        "failed: out of {memory}",
    ),
    "incomplete": (
        result({"d": 2.0}, drop=lambda one: one.arm == "d" and one.prompt == "p2" and one.task == "chat"),
        "incomplete: 2 of 8 outputs of chat are missing",
    ),
    "not-lossless": (result({"d": 2.0}, change=spoil), "1 of 16 outputs leave .* token 4 of math/p1"),
    "samples-differ": (
        result({"d": 2.0}, arms=[arm_of("d", sampling=check(0.0001))], mode=DecodingMode(temperature=1.0)),
        r"200 outputs drawn do not follow .* \(p = 0.0001\)",
    ),
    "implausible-acceptance": (
        result({"d": 2.0}, arms=[arm_of("d", k=2)]),
        r"the acceptance length 4.00 lies outside \[1, 3\]",
    ),
    "implausible-speedup": (result({"d": 2.0}, histogram=(8,)), "implausible: 2.0.× is more than .* 1.00"),
    "unjudged-differences": (result({"d": 2.0}, change=spoil, dtype="bf16"), "in bf16 .* run it again"),
    "too-few-prompts": (
        result({"d": 2.0}, tasks={"chat": 4, "math": 1}),
        "math has fewer than 2 .* larger suite",
    ),
    "no-noise-floor": (
        result({"d": 2.0}, drop=lambda one: one.arm == "baseline-control"),
        "no A/A comparison",
    ),
    "disturbed": (
        result({"d": 2.0}, change=under(others_cpus=1.8)),
        r"unstable: the machine was disturbed in 25% .* kept 1.8 of 2 processors busy\); stop other work",
    ),
    "throttled": (
        result({"d": 2.0}, change=under(quota_throttled=0.5)),
        r"unstable: the machine was slowed down in 25% .*quota stopped its processes 50%",
    ),
    "unstable": (result({"d": 2.0}, control=1.1), "instead of 1; run it again on a quiet machine"),
    "noisy": (result({"d": 2.0}, change=spread), r"spreads by ±.*%.*with more prompts"),
}


def test_every_gate_has_a_case_and_an_explanation():
    assert set(FAILING) == {gate.id for gate in GATES}
    assert all(len(gate.meaning) > 20 for gate in GATES)


@pytest.mark.parametrize("gate", FAILING)
def test_a_gate_that_fails_says_why(gate):
    found, reason = FAILING[gate]
    judged = verdict(found)
    assert not judged.ranked
    assert gate in [finding.gate for finding in judged.findings]
    finding = next(finding for finding in judged.findings if finding.gate == gate)
    assert re.search(reason.replace("{", r"\{").replace("}", r"\}"), finding.reason)


def test_samples_that_follow_the_target_pass():
    arms = [arm_of("d", sampling=check(0.02))]
    assert verdict(result({"d": 2.0}, arms=arms, mode=DecodingMode(temperature=1.0))).ranked


def test_a_lossy_draft_need_not_be_identical():
    assert verdict(result({"d": 2.0}, change=spoil, arms=[arm_of("d", lossy=True)])).ranked


def test_a_sound_result_passes_all_gates():
    judged = verdict(result({"d": 2.0}))
    assert judged.ranked
    assert judged.reason is None


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_identical_outputs_pass_in_low_precision(dtype):
    assert verdict(result({"d": 2.0}, dtype=dtype)).ranked


def test_a_skipped_task_is_incomplete():
    judged = verdict(result({"d": 2.0}, skipped_tasks=("code",)))
    assert judged.reason.startswith("incomplete: task code was skipped")


def test_the_weightiest_reason_comes_first():
    judged = verdict(result({"d": 2.0}, change=spoil, control=1.3))
    assert [finding.gate for finding in judged.findings] == ["not-lossless", "unstable"]
    assert "not lossless" in judged.reason


def test_a_bias_of_half_a_percent_is_no_reason_to_distrust_a_session():
    # Both baseline arms have the same fixed noise here, so A/A is exactly 1.005 with no width.
    found = result({"d": 2.0}, drop=lambda one: one.arm == "baseline-control")
    twins = tuple(
        one.model_copy(update={"arm": "baseline-control", "decode_s": one.decode_s / 1.005})
        for one in found.trials
        if one.arm == "baseline"
    )
    assert verdict(found.model_copy(update={"trials": found.trials + twins})).ranked


def test_a_high_speedup_is_plausible_when_tasks_accept_unevenly():
    # Task a: 1 token per step; task b: 4. The ratio of sums over both is far below the geometric mean
    # of the two, which is what bounds a geometric mean of speedups.
    base = result({"d": 1.0}, tasks={"a": 3, "b": 3})

    def reshape(one):
        if one.arm != "d":
            return one
        histogram = (8, 0, 0, 0) if one.task == "a" else (0, 0, 0, 2)
        speed = 0.98 if one.task == "a" else 3.9
        return one.model_copy(
            update={"accept_histogram": histogram, "steps": sum(histogram), "decode_s": one.decode_s / speed}
        )

    uneven = base.model_copy(update={"trials": tuple(map(reshape, base.trials))})
    summary = summarise(uneven)
    draft = summary.arms[-1]
    assert draft.speedup.interval.low > draft.acceptance.length
    assert judge(summary, draft).ranked


def test_one_prompt_turn_in_ten_may_stay_disturbed():
    def change(one):
        hit = (one.task, one.prompt, one.repeat) == ("math", "p1", 0)
        return one.model_copy(update={"conditions": Conditions(others_cpus=1.8 if hit else 0.0)})

    assert verdict(result({"d": 2.0}, change=change)).ranked


def test_only_the_attempt_that_stands_must_be_calm():
    found = result({"d": 2.0}, change=under(others_cpus=1.8))
    again = tuple(
        one.model_copy(update={"attempt": 1, "conditions": Conditions(others_cpus=0.1)})
        for one in found.trials
        if one.prompt == "p1"
    )
    calm = found.model_copy(update={"trials": found.trials + again})
    assert verdict(calm).ranked
    stability = summarise(calm).stability
    assert (stability.prompt_turns, stability.watched, stability.repeated) == (16, 16, 4)
    assert (stability.disturbed, stability.throttled, stability.rules) == (0, 0, ())


def test_a_session_that_was_not_watched_passes():
    unwatched = summarise(result({"d": 2.0})).stability
    assert (unwatched.watched, unwatched.share("disturbed")) == (0, 0.0)
    assert verdict(
        result({"d": 2.0}, change=lambda one: one.model_copy(update={"conditions": Conditions()}))
    ).ranked
