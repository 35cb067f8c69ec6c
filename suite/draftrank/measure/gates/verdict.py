"""What a result must pass to be ranked. What fails is still shown, with the reason and what to do.

Each gate is a function that returns the values of its reason when a result fails it. The methodology
page lists the gates from `GATES`, so a gate and its explanation cannot drift apart.
"""

from __future__ import annotations

from draftrank import kinds
from draftrank.measure.fidelity.divergence import Divergence
from draftrank.measure.fidelity.stale_proposals import MIN_STALE, STALE_SHARE, stale_steps
from draftrank.measure.gates.audit import place_of
from draftrank.measure.gates.gate import Gate, Values, Verdict, gate, put_through
from draftrank.measure.gates.plausibility import (
    accepts_nothing,
    implausible_acceptance,
    implausible_clock,
    implausible_counts,
    implausible_outputs,
    implausible_speedup,
    implausible_times,
    proposes_nothing,
    skipped_work,
    unplanned,
)
from draftrank.measure.machine.disturbance import Kind
from draftrank.measure.records import step_kinds
from draftrank.measure.statistics.estimates import Interval
from draftrank.measure.statistics.log_ratio import MIN_PROMPTS
from draftrank.measure.summaries.summary import ArmSummary, SessionSummary
from draftrank.version import __version__, minor_of

NOISE_TOLERANCE = 0.01
"""Tolerated distance of the A/A interval from 1. Less does not matter for a ranking, and by chance one quiet
session in twenty excludes 1 itself. With it, few honest quick sessions and hardly any larger ones are called
unstable; `docs/simulation.md` has the rates."""
NOISE_WIDTH = 0.15
"""Largest half-width of the A/A interval. Honest sessions of eleven prompts have ±3 to ±9 %, because a t-interval of
so few is wide. The intervals of their drafts contain the same noise, so none ranks too high."""
DISTURBED_SHARE = 0.1
"""Largest share of prompt turns that may stay disturbed. All arms of a prompt turn run in the same minutes,
so a few disturbed ones widen the intervals; many can bias the comparison."""

SAMPLING_P = 0.001
"""Probability below which samples do not follow the target's distribution."""
_QUIETER = "run it again on a quiet machine, with more prompts or repeats"


def judge(summary: SessionSummary, arm: ArmSummary) -> Verdict:
    """Puts one arm of a session through all gates."""
    return put_through(GATES, summary, arm)


def differs(noise: Interval) -> bool:
    """Whether an A/A interval says that the baseline differs from itself by more than is tolerated."""
    return noise.low > 1 + NOISE_TOLERANCE or noise.high < 1 - NOISE_TOLERANCE


def spreads(noise: Interval) -> bool:
    """Whether an A/A interval is too wide to rank anything by its session."""
    return noise.half_width > NOISE_WIDTH


@gate("failed", "draft", "failed: {failure}")
def _failed(summary: SessionSummary, arm: ArmSummary) -> Values | None:  # noqa: ARG001
    """The draft could not be built, or decoding with it stopped with an error."""
    return None if arm.arm.failure is None else {"failure": arm.arm.failure}


@gate("incomplete", "draft", "incomplete: {what}; run the same command again to fill it")
def _incomplete(summary: SessionSummary, arm: ArmSummary) -> Values | None:
    """A missing task or prompt changes the set that the overall speedup is a mean of."""
    parts = [f"task {task} was skipped" for task in summary.skipped_tasks]
    parts += [
        f"{task.missing} of {task.planned} outputs of {task.task} are missing"
        for task in arm.tasks
        if task.missing
    ]
    parts += [
        f"{task.task} has no speedup (nothing was decoded)"
        for task in arm.tasks
        if not task.missing and task.speedup is None
    ]
    if not arm.tasks:
        parts.append("no task was measured")
    return {"what": "; ".join(parts)} if parts else None


@gate(
    "too-few-prompts",
    "session",
    "too few prompts: {task} has fewer than {least} that can be compared, so there is no interval; use a "
    "larger suite",
)
def _too_few_prompts(summary: SessionSummary, arm: ArmSummary) -> Values | None:  # noqa: ARG001
    """One prompt in a task does not show how prompts differ, so no honest interval exists."""
    for task in arm.tasks:
        if task.speedup is not None and task.speedup.interval is None:
            return {"task": task.task, "least": str(MIN_PROMPTS)}
    return None


@gate(
    "not-lossless",
    "draft",
    "not lossless: {breaks} of {compared} outputs leave the target's own, first at {place}",
)
def _not_lossless(summary: SessionSummary, arm: ArmSummary) -> Values | None:
    """Greedy outputs must be the baseline's, token for token. In any dtype but fp32 an output may diverge
    where both tokens lie within the session's measured rounding of the target's best one, in fp32 where the
    target gives both exactly its highest logit (a numerical tie)."""
    first = arm.fidelity.earliest("break")
    if first is None or arm.arm.lossy:
        return None
    return _difference(summary, arm, first) | {"breaks": str(arm.fidelity.breaks)}


@gate(
    "other-backend",
    "draft",
    "other backend: its model ran in {backend}, and the session is of {own}; compare it in a session of its own",
)
def _other_backend(summary: SessionSummary, arm: ArmSummary) -> Values | None:
    """All drafts that are ranked together run in the backend of their session, where the same forward takes the same
    time. A draft that this backend cannot run may be measured in another one on request: its row is shown and not
    ranked."""
    backend, own = arm.arm.backend, summary.session.backend
    if backend is None or backend == own:
        return None
    return {"backend": f"{backend} {arm.arm.dtype}", "own": own}


@gate(
    "retired-step",
    "draft",
    "cannot be built again: draftrank no longer has the step {step} of its recipe",
)
def _retired_step(summary: SessionSummary, arm: ArmSummary) -> Values | None:
    """What is ranked can be built again. A draft whose recipe has a step that draftrank no longer has keeps its row, without
    a rank; boards of earlier minor versions keep theirs, since they are archived as a whole."""
    if arm.arm.draft is None or minor_of(summary.session.draftrank_version) != minor_of(__version__):
        return None
    gone = [kind for kind in step_kinds(arm.arm.draft.recipe) if kind not in kinds.STEPS]
    return {"step": ", ".join(gone)} if gone else None


@gate(
    "samples-differ",
    "draft",
    "not lossless: {draws} outputs drawn do not follow the target's distribution (p = {p})",
)
def _samples_differ(summary: SessionSummary, arm: ArmSummary) -> Values | None:  # noqa: ARG001
    """In sampling modes the first tokens drawn over many seeds must follow the target's own distribution
    (chi-square). One honest draft in a thousand fails by chance."""
    check = arm.arm.sampling
    if check is None or check.p_value >= SAMPLING_P:
        return None
    return {"p": f"{check.p_value:.1g}", "draws": str(check.draws)}


@gate(
    "unjudged-differences",
    "draft",
    "unjudged differences: {differing} of {compared} outputs differ, first at {place}; in {dtype} they "
    "may be ties, so run it again to have them judged",
)
def _unjudged_differences(summary: SessionSummary, arm: ArmSummary) -> Values | None:
    """In any dtype but fp32, a tie cannot be told from a break until the target's logits at the place and the
    session's rounding are known."""
    first = arm.fidelity.earliest("unjudged")
    if first is None or arm.arm.lossy:
        return None
    return _difference(summary, arm, first)


@gate(
    "stale-proposals",
    "draft",
    "stale proposals: in {stale} of {checked} steps a fresh cache of the draft proposes other tokens, first in "
    "{place}; the draft's cache or the engine's rollback is wrong, so report it",
)
def _stale_proposals(summary: SessionSummary, arm: ArmSummary) -> Values | None:
    """A draft must propose what its context says. Where its KV cache still contains other tokens, outputs
    stay right but acceptance is not the draft's. In greedy modes steps of some prompt turns are proposed
    again from a fresh cache. In at most one step in five may a token lie further below that cache's best one
    than a logit and the arm's rounding."""
    stale, checked = stale_steps(summary.trials[arm.arm.id])
    if len(stale) < MIN_STALE or len(stale) <= STALE_SHARE * checked:
        return None
    return {"stale": str(len(stale)), "checked": str(checked), "place": place_of(stale[0])}


@gate(
    "no-noise-floor",
    "session",
    "noise unknown: the session has no A/A comparison; run it again with the control arm",
)
def _no_noise_floor(summary: SessionSummary, arm: ArmSummary) -> Values | None:  # noqa: ARG001
    """A session measures its baseline in two arms. Their difference is its noise floor."""
    return {} if _noise(summary) is None else None


@gate(
    "unstable",
    "session",
    f"unstable: the baseline against itself came out at {{low}}–{{high}} instead of 1; {_QUIETER}",
)
def _unstable(summary: SessionSummary, arm: ArmSummary) -> Values | None:  # noqa: ARG001
    """The baseline measured against itself must come out at 1: its interval must reach to within 1 % of it."""
    noise = _noise(summary)
    return _shown(noise) if noise and differs(noise) else None


@gate(
    "noisy",
    "session",
    f"noisy: the baseline against itself spreads by ±{{width}} ({{low}}–{{high}}); {_QUIETER}",
)
def _noisy(summary: SessionSummary, arm: ArmSummary) -> Values | None:  # noqa: ARG001
    """An A/A interval wider than ±15 % says too little about any draft of the session."""
    noise = _noise(summary)
    return _shown(noise) if noise and spreads(noise) else None


@gate(
    "disturbed",
    "session",
    "unstable: the machine was disturbed in {share} of the prompt turns (e.g. {example}); {fix}",
)
def _disturbed(summary: SessionSummary, arm: ArmSummary) -> Values | None:  # noqa: ARG001
    """The machine must be free for the session. A prompt turn during which other processes, the hypervisor or
    a lack of memory took time is decoded again, and no more than a tenth of those that were watched may stay
    so. Sessions that were not watched pass."""
    return _not_calm(summary, "disturbed")


@gate(
    "throttled",
    "session",
    "unstable: the machine was slowed down in {share} of the prompt turns (e.g. {example}); {fix}",
)
def _throttled(summary: SessionSummary, arm: ArmSummary) -> Values | None:  # noqa: ARG001
    """The machine must keep its speed. No more than a tenth of the prompt turns that were watched may stay
    slowed down by a container's quota or by lowered clocks. Sessions that were not watched pass."""
    return _not_calm(summary, "throttled")


def _not_calm(summary: SessionSummary, kind: Kind) -> Values | None:
    worst = summary.stability.worst(kind)
    share = summary.stability.share(kind)
    if worst is None or share <= DISTURBED_SHARE:
        return None
    return {"share": f"{share:.0%}", "example": worst.example, "fix": worst.fix}


def _difference(summary: SessionSummary, arm: ArmSummary, first: Divergence) -> Values:
    return {
        "differing": str(arm.fidelity.differing),
        "compared": str(arm.fidelity.compared),
        "place": first.place,
        "dtype": summary.session.dtype,
    }


def _noise(summary: SessionSummary) -> Interval | None:
    overall = summary.noise.overall if summary.noise else None
    return overall.interval if overall else None


def _shown(noise: Interval) -> Values:
    return {"low": f"{noise.low:.3f}", "high": f"{noise.high:.3f}", "width": f"{noise.half_width:.1%}"}


GATES: tuple[Gate, ...] = (
    _failed, _incomplete, _not_lossless, _samples_differ, _other_backend, _retired_step,
    implausible_outputs, implausible_acceptance, implausible_counts, unplanned, implausible_times,
    implausible_clock, skipped_work, implausible_speedup, accepts_nothing, _stale_proposals, proposes_nothing,
    _unjudged_differences, _too_few_prompts, _no_noise_floor, _disturbed, _throttled, _unstable, _noisy,
)  # fmt: skip
