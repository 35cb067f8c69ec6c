"""The gates against figures that cannot be true, whatever the cause.

A measurement goes wrong more often than it lies: a clock that jumps, an arm that skips work, a counter
that counts twice. Such a row looks like any other, often like a better one. Each check here holds a
figure against a bound that no honest session can cross; the findings name the first place to look at.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from draftrank.measure.gates.audit import (
    Ends,
    count_faults,
    first_of,
    output_faults,
    place_of,
    plan_faults,
    prompt_faults,
    time_faults,
)
from draftrank.measure.gates.clocks import holes, overlaps
from draftrank.measure.gates.gate import Values, gate
from draftrank.measure.records import Trial
from draftrank.measure.statistics.estimates import Estimate, ends_of, geometric_mean, pair_trials, ratio_end
from draftrank.measure.summaries.summary import ArmSummary, SessionSummary

MIN_FORWARD = 0.7
"""Minimum of the mean time of a verification, as a share of the target's single-token forward in the session.
Published sessions stay above 0.9, and a forward over more tokens is never faster."""
MIN_PROPOSED = 100
"""Proposals of a model after which at least one must have been accepted."""

CONTROL_TECHNIQUE = "random weights"
"""How the step `random` is called on the board."""


@gate(
    "implausible-speedup",
    "draft",
    "implausible: {speedup}× (at least {low}×) {where} is more than the acceptance length {bound} allows; "
    "run it again",
)
def implausible_speedup(summary: SessionSummary, arm: ArmSummary) -> Values | None:
    """No draft can be faster than its acceptance length, because each step costs at least one forward of the
    target. The lower end of the speedup's interval must not exceed it, overall (as geometric means over the
    tasks) and in each task, with a tolerance from the session's A/A."""
    if arm.arm.kind != "draft":
        return None
    cases = [(task.task, task.speedup, task.acceptance.length) for task in arm.tasks]
    lengths = [length for _, speedup, length in cases if speedup is not None and length is not None]
    for name, speedup, bound in [("over all tasks", arm.speedup, geometric_mean(lengths)), *cases]:
        if bound is None or speedup is None or speedup.interval is None:
            continue
        noise = (summary.noise.tasks.get(name) or summary.noise.overall) if summary.noise else None
        if speedup.interval.low > bound * by_chance(noise):
            return {
                "speedup": f"{speedup.value:.2f}",
                "low": ratio_end(speedup.interval.low),
                "bound": ratio_end(bound),
                "where": name if speedup is arm.speedup else f"in {name}",
            }
    return None


@gate(
    "implausible-acceptance",
    "draft",
    "implausible: the acceptance length {length} {where} lies outside [1, {most}]",
)
def implausible_acceptance(summary: SessionSummary, arm: ArmSummary) -> Values | None:  # noqa: ARG001
    """A step emits at least one token and at most k+1, so the acceptance length lies between 1 and k+1, in
    each task too."""
    most = arm.arm.num_speculative_tokens + 1
    cases = [("over all tasks", arm.acceptance.length)]
    cases += [(f"in {task.task}", task.acceptance.length) for task in arm.tasks]
    for where, length in cases:
        if length is not None and not 1 <= length <= most:
            return {"length": f"{length:.2f}", "most": str(most), "where": where}
    return None


@gate("implausible-counts", "draft", "implausible counts: {what}")
def implausible_counts(summary: SessionSummary, arm: ArmSummary) -> Values | None:
    """Histogram, offered and proposed tokens, forwards of the draft and the prompt's length must fit each
    other, k and the baseline: accepted tokens were offered before, and offered tokens were proposed."""
    found = [
        f"{place_of(trial)}: {fault}"
        for judged in _with_baseline(summary, arm)
        for trial in _trials(summary, judged)
        for fault in count_faults(trial, judged.arm)
    ]
    if summary.baseline is not None and arm.arm.kind == "draft":
        found += prompt_faults(pair_trials(_trials(summary, summary.baseline), _trials(summary, arm)))
    return told(found)


@gate("implausible-outputs", "draft", "implausible: {what}; run it again, and report it if it stays")
def implausible_outputs(summary: SessionSummary, arm: ArmSummary) -> Values | None:
    """An output ends at a stop token or at its task's limit, states which, and nothing follows its end. The
    stop tokens are those that end the baseline's outputs."""
    limits = {task.task: task for task in summary.session.tasks}
    ends = Ends.seen_in(_trials(summary, summary.baseline))
    return told(
        f"{place_of(trial)}: {fault}"
        for judged in _with_baseline(summary, arm)
        for trial in _trials(summary, judged)
        if trial.task in limits
        for fault in output_faults(trial, limits[trial.task], ends)
    )


@gate("unplanned", "draft", "not as planned: {what}")
def unplanned(summary: SessionSummary, arm: ArmSummary) -> Values | None:
    """Every prompt turn that counts was planned before it was measured, and counts once, so nobody can choose
    the prompts afterwards."""
    return told(
        fault
        for judged in _with_baseline(summary, arm)
        for fault in plan_faults(_trials(summary, judged), summary.session.tasks)
    )


@gate("implausible-times", "draft", "implausible times: {what}; run it again")
def implausible_times(summary: SessionSummary, arm: ArmSummary) -> Values | None:
    """Proposing and verifying are parts of decoding and cannot take longer than it, and no forward takes zero
    time."""
    return told(
        f"{place_of(trial)}: {fault}"
        for judged in _with_baseline(summary, arm)
        for trial in _trials(summary, judged)
        for fault in time_faults(trial)
    )


@gate(
    "implausible-clock",
    "draft",
    "implausible times: the stopwatch and the time of day disagree: {what}; run it again without "
    "suspending the machine or setting its clock",
)
def implausible_clock(summary: SessionSummary, arm: ArmSummary) -> Values | None:
    """The stopwatch and the time of day must agree. A trial ends before the next of its process begins, and
    the gap between two that follow directly is short and about the same after every arm. A stopwatch that
    jumps, or runs slowly for one arm, breaks this in the draft's trials or in the baseline's, and so do
    seconds that were changed afterwards."""
    arms = {judged.arm.id for judged in _with_baseline(summary, arm)}
    try:
        found = [fault for name, fault in _clocks(_Same(summary)) if name in arms]
    except ValueError as error:
        return told([f"the time a trial began is unreadable ({error})"])
    return told(found)


class _Same:
    """A summary as a key: the very object, not one that is equal."""

    __slots__ = ("summary",)

    def __init__(self, summary: SessionSummary) -> None:
        self.summary = summary

    def __hash__(self) -> int:
        return id(self.summary)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.summary is self.summary


@lru_cache(maxsize=2)
def _clocks(same: _Same) -> tuple[tuple[str, str], ...]:
    """What the clocks of a session say: all its arms are judged one after the other, and it is the same for each."""
    summary = same.summary
    trials = [trial for each in summary.arms for trial in _trials(summary, each)]
    return (*((trial.arm, fault) for trial, fault in overlaps(trials)), *holes(trials))


@gate(
    "skipped-work",
    "draft",
    "implausible: a verification took {mean} ms on average in {task}, though the target's forward of one token "
    "takes {fastest} ms; work was skipped, or the clock is wrong",
)
def skipped_work(summary: SessionSummary, arm: ArmSummary) -> Values | None:
    """A verification is a forward of the target over at least one token, so its mean time in a task cannot be
    far below the session's single-token forward: the baseline's mean in the same task or, where it is less, the
    smallest median timed beside the trials. An arm below it skips work."""
    timed = [
        latency.median_s
        for each in summary.arms
        for latency in each.arm.latencies
        if (latency.part, latency.tokens) == ("target", 1)
    ]
    if arm.arm.kind != "draft":
        return None
    baseline = _verifications(summary, summary.baseline)
    for task, mean in _verifications(summary, arm).items():
        fastest = min([*timed, *([baseline[task]] if task in baseline else [])], default=0.0)
        if mean < MIN_FORWARD * fastest:
            return {"task": task, "mean": f"{1000 * mean:.3g}", "fastest": f"{1000 * fastest:.3g}"}
    return None


@gate(
    "accepts-nothing",
    "draft",
    "accepts nothing: none of {proposed} proposed tokens was accepted; check that the draft reads the "
    "target's token ids",
)
def accepts_nothing(summary: SessionSummary, arm: ArmSummary) -> Values | None:
    """A model of which no token is accepted reads other token ids than the target (a permuted vocabulary,
    wrong weights) or has lost all its training: a defect of its build, not a slow draft. Random weights that
    are declared as such are a control and pass."""
    build = arm.arm.draft
    if build is not None and CONTROL_TECHNIQUE in build.techniques:
        return None
    forwards = sum(trial.draft_forwards for trial in _trials(summary, arm))
    if not forwards or arm.acceptance.accepted or arm.acceptance.proposed < MIN_PROPOSED:
        return None
    return {"proposed": str(arm.acceptance.proposed)}


@gate(
    "proposes-nothing",
    "draft",
    "proposes nothing: not one token in {steps} steps, so this is plain decoding; check that its rule can apply "
    "to these prompts, or use longer outputs",
)
def proposes_nothing(summary: SessionSummary, arm: ArmSummary) -> Values | None:  # noqa: ARG001
    """A draft that proposed no token in all its steps is plain decoding: its row would rank the session's
    noise."""
    acceptance = arm.acceptance
    if arm.arm.kind != "draft" or not acceptance.steps or acceptance.proposed:
        return None
    return {"steps": str(acceptance.steps)}


def _with_baseline(summary: SessionSummary, arm: ArmSummary) -> Iterator[ArmSummary]:
    """What a speedup rests on: the arm's trials and the baseline's. A reference counts in its own way,
    and is never ranked."""
    if arm.arm.kind == "reference":
        return
    yield arm
    if summary.baseline is not None and summary.baseline.arm.id != arm.arm.id:
        yield summary.baseline


def told(faults: Iterable[str]) -> Values | None:
    """The values of a reason with the first fault; None without any."""
    what = first_of(faults)
    return None if what is None else {"what": what}


def by_chance(noise: Estimate | None) -> float:
    """How much a ratio of equals exceeded 1 in an A/A comparison; 1 without its interval."""
    ends = ends_of(noise)
    return max(1.0, ends[1], 1 / ends[0] if ends[0] > 0 else 1.0) if ends else 1.0


def _trials(summary: SessionSummary, arm: ArmSummary | None) -> Sequence[Trial]:
    return summary.trials.get(arm.arm.id, ()) if arm else ()


def _verifications(summary: SessionSummary, arm: ArmSummary | None) -> Mapping[str, float]:
    """Mean seconds of a verification by task, where there was one."""
    verify_s: dict[str, float] = defaultdict(float)
    steps: Counter[str] = Counter()
    for trial in _trials(summary, arm):
        verify_s[trial.task] += trial.verify_s
        steps[trial.task] += trial.steps
    return {task: verify_s[task] / count for task, count in steps.items() if count}
