"""Each gate, failed and passed, and what it tells the reader."""

from __future__ import annotations

import itertools
import re
import shutil

import pytest

from builders import arm_of, build, one_after_another, result
from draftrank import load_results
from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.measure.evidence import Conditions, Judgement, ProposalCheck, SamplingCheck
from draftrank.measure.gates.verdict import GATES, judge
from draftrank.measure.summaries.summary import summarise
from workspaces import REPOSITORY


def verdict(found, name="d"):
    summary = summarise(found)
    return judge(summary, next(arm for arm in summary.arms if arm.arm.id == name))


def spoil(one):
    """Changes one token of one of the draft's outputs."""
    if one.arm != "d" or (one.task, one.prompt, one.repeat) != ("math", "p1", 0):
        return one
    return one.model_copy(update={"token_ids": (*one.token_ids[:4], 7, *one.token_ids[5:])})


def of_d(one, **changes):
    """The trial with these changes if it is the draft's."""
    return one.model_copy(update=changes) if one.arm == "d" else one


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


def looked_at(*gaps):
    """Gives the draft's trials, in turn, what a look at a step gave."""
    turns = itertools.cycle(gaps)

    def change(one):
        looked = ProposalCheck(tokens=3, gap=next(turns), rounding=0.5)
        return of_d(one, judgement=Judgement(proposal=looked))

    return change


def with_steps(*kinds):
    steps = [{"kind": kind} for kind in kinds]
    return build("d", recipe={"draft": {"kind": "draft_model", "steps": steps}})


SILENT = {"offered": (0, 0, 0), "proposed": 0, "draft_forwards": 0, "proposal_sizes": (8, 0, 0, 0)}
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
        r"the acceptance length 4.00 over all tasks lies outside \[1, 3\]",
    ),
    "implausible-outputs": (
        result({"d": 2.0}, change=lambda one: of_d(one, token_ids=(*range(100, 108), 103), finish="stop")),
        r"implausible: chat/p0 .* of d: ended as by a stop token, but 103 is none \(and 15 more\)",
    ),
    "implausible-counts": (
        result({"d": 2.0}, change=lambda one: of_d(one, draft_forwards=99)),
        "implausible counts: chat/p0 .* of d: 99 forwards of the draft for 6 proposed tokens",
    ),
    "unplanned": (
        result({"d": 2.0}, change=lambda one: one.model_copy(update={"prompt": "the-best-one"})),
        "not as planned: chat/the-best-one .* is not in its plan",
    ),
    "implausible-times": (
        result({"d": 2.0}, change=lambda one: of_d(one, propose_s=2 * one.decode_s)),
        "of d: its parts took .* s of .* s",
    ),
    "implausible-clock": (
        result({"d": 2.0}, change=lambda one: one.model_copy(update={"started_at": "2026-11-01T10:00:00Z"})),
        "disagree: .* took .* s, but the next began 0.000 s after it began",
    ),
    "skipped-work": (
        result({"d": 2.0}, change=lambda one: of_d(one, verify_s=one.verify_s / 10)),
        "a verification took .* ms on average in chat, though the target.s forward of one token takes .* ms",
    ),
    "implausible-speedup": (
        result({"d": 2.0}, histogram=(8, 0, 0, 0)),
        "implausible: 2.0.× .at least .* over all tasks is more than .* 1.00",
    ),
    "accepts-nothing": (
        result({"d": 0.5}, histogram=(8, 0, 0, 0)),
        "none of 384 proposed tokens was accepted",
    ),
    "stale-proposals": (
        result({"d": 2.0}, change=looked_at(0.0, 0.2, 7.5, None)),
        r"stale proposals: in 8 of 16 steps a fresh cache .* first in chat/p. .* of d",
    ),
    "proposes-nothing": (
        result({"d": 0.99}, histogram=(8, 0, 0, 0), change=lambda one: of_d(one, **SILENT)),
        "proposes nothing: not one token in 128 steps, so this is plain decoding",
    ),
    "other-backend": (
        result({"d": 2.0}, arms=[arm_of("d").model_copy(update={"backend": "llama.cpp", "dtype": "q8_0"})]),
        r"other backend: its model ran in llama\.cpp q8_0, and the session is of transformers",
    ),
    "retired-step": (
        result({"d": 2.0}, arms=[arm_of("d", draft=with_steps("drop_layers", "read_thoughts"))]),
        "cannot be built again: draftrank no longer has the step read_thoughts of its recipe",
    ),
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


def test_archived_drafts_keep_their_rank_when_a_step_retires():
    older, _ = FAILING["retired-step"]
    session = older.session.model_copy(update={"draftrank_version": "0.2.0"})
    assert verdict(older.model_copy(update={"session": session})).ranked


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


def test_rounding_and_two_odd_steps_are_not_stale():
    assert verdict(result({"d": 2.0}, change=looked_at(0.0, 0.4, 1.4))).ranked
    assert verdict(result({"d": 2.0}, change=looked_at(7.5, None, *[0.0] * 100))).ranked


def test_a_lossy_draft_need_not_be_identical():
    assert verdict(result({"d": 2.0}, change=spoil, arms=[arm_of("d", lossy=True)])).ranked


def test_a_sound_result_passes_all_gates():
    judged = verdict(result({"d": 2.0}))
    assert judged.ranked
    assert judged.reason is None


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_identical_outputs_pass_in_low_precision(dtype):
    assert verdict(result({"d": 2.0}, dtype=dtype)).ranked


def test_a_declared_control_may_accept_nothing():
    build = arm_of("d").draft.model_copy(update={"techniques": ("random weights",)})
    assert verdict(result({"d": 0.5}, histogram=(8, 0, 0, 0), arms=[arm_of("d", draft=build)])).ranked


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
    trials = tuple(one_after_another(found.trials + twins))
    assert verdict(found.model_copy(update={"trials": trials})).ranked


def test_a_high_speedup_is_plausible_when_tasks_accept_unevenly():
    # Task a: 1 token per step; task b: 4. The ratio of sums over both is far below the geometric mean
    # of the two, which is what bounds a geometric mean of speedups.
    base = result({"d": 1.0}, tasks={"a": 3, "b": 3})

    def reshape(one):
        if one.arm != "d":
            return one
        histogram, offered = ((8, 0, 0, 0), (8, 0, 0)) if one.task == "a" else ((0, 0, 0, 2), (2, 2, 2))
        seconds = one.decode_s / (0.98 if one.task == "a" else 3.9)
        steps = sum(histogram)
        return one.model_copy(
            update={
                "accept_histogram": histogram,
                "offered": offered,
                "steps": steps,
                "proposed": 3 * steps,
                "draft_forwards": 3 * steps,
                "decode_s": seconds,
                "propose_s": 0.25 * seconds,
                "verify_s": 0.5 * seconds,
            }
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


def test_one_implausible_task_is_enough():
    def faster(one):
        parts = ("decode_s", "propose_s", "verify_s")
        return of_d(one, **{part: getattr(one, part) / 2 for part in parts}) if one.task == "math" else one

    judged = verdict(result({"d": 2.5}, change=faster))
    assert "in math is more than the acceptance length 4.00 allows" in judged.reason


def test_what_is_wrong_with_the_baseline_counts_against_every_draft():
    def jump(one):
        jumps = one.arm == "baseline" and (one.prompt, one.repeat) == ("p1", 1)
        return one.model_copy(update={"decode_s": one.decode_s + 5}) if jumps else one

    judged = verdict(result({"d": 2.0}, change=jump))
    assert "implausible-clock" in {finding.gate for finding in judged.findings}


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.nightly)])
def test_the_published_results_pass_every_gate_but_those_of_noise(tmp_path, every):
    """Their rows were ranked when they were measured: a stricter rule must not refuse honest sessions. Layers cut out and
    not healed may accept nothing at all, and steps retire: that is shown, and not ranked."""
    results = REPOSITORY / "leaderboard" / "results"
    for path in sorted(results.rglob("*.json"))[::every]:
        chosen = tmp_path / path.relative_to(results)
        chosen.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, chosen)
    published = load_results(None, tmp_path)
    assert published
    for found in published:
        summary = summarise(found)
        for arm in summary.arms:
            refused = {finding.gate for finding in judge(summary, arm).findings if finding.scope == "draft"}
            unhealed = arm.arm.draft is not None and arm.arm.draft.techniques == ("layer dropping",)
            allowed = {"retired-step", "accepts-nothing"} if unhealed else {"retired-step"}
            assert refused <= allowed, f"{found.session.id} {arm.arm.id}"
