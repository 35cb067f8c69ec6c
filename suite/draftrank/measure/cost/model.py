"""What decoding with a draft should cost, from forward times and from how many tokens were accepted.

The prediction uses two independent sources: forward times, taken beside the trials (`latency`), and the
trials' counts of proposed and accepted tokens. No time of a trial enters it, except the lookup time of
trials in which no model ran, which no forward shows. Where predicted and measured speedup agree, both are
credible. Where they differ, either the loop costs time or a measurement is wrong.

A step that verifies m tokens costs m forwards of the draft and one of the target over m+1 positions. Of a
draft that ran fewer forwards than it proposed tokens (a tree, a cascade), their share counts:

    step(m) = t_draft(1)·m + [t_draft(2) − t_draft(1) where the step before accepted everything] + t_target(m+1)

    predicted speedup = Σ emitted tokens · t_target(1) ÷ Σ step(m)

This is acceptance length × t_target(1) ÷ (proposed per step × t_draft + t_target(k+1)) when each step
proposes k tokens. Forward times are read at the mean context of a task's steps, for `engine_efficiency` at each
trial's own.

Only *ratios* of forward times are trusted across minutes. The kinds of forward are timed in turn, so a slow
minute affects them alike, while the same forward may take a third longer ten minutes later on a shared
machine. Where seconds are needed (`engine_efficiency`, `StepTime`), they are scaled by what the baseline's
forwards took in the trials of the same prompts beside the arm's own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum

from draftrank.measure.cost.forward_times import ForwardTimes
from draftrank.measure.cost.step_counts import StepCost, StepCounts, mean_context
from draftrank.measure.records import Arm, Trial
from draftrank.measure.statistics.estimates import geometric_mean, pair_trials, ratio

MAX_K = 8
"""Largest k that is looked at beyond the session's own."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Where a step's milliseconds go, on average over all steps of the trials."""

    draft_ms: float
    """Forwards of the draft, predicted, and at most what proposing took; 0 without a model."""
    propose_overhead_ms: float
    """The rest of proposing: choosing tokens, looking n-grams up, calling."""
    verify_ms: float
    """The target's forward, measured."""
    rest_ms: float
    """Everything else: judging, bookkeeping, the loop."""
    predicted_ms: float
    """What forwards and look-ups alone should take."""

    @property
    def total_ms(self) -> float:
        """The whole step, measured."""
        return self.draft_ms + self.propose_overhead_ms + self.verify_ms + self.rest_ms


@dataclass(frozen=True, slots=True)
class AtK:
    """What the draft should give with another number of proposed tokens."""

    k: int
    speedup: float
    acceptance_length: float
    extrapolated: bool
    """Beyond the session's own k nothing was seen: further tokens are assumed to be accepted as often as
    the last one that was."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What could be reached at most with this target and k, on the machine of the forward times."""

    free_draft: float
    """A draft that costs nothing and is accepted as this one is."""
    perfect_draft: float
    """A draft that costs what this one does and is always accepted."""
    ceiling: float
    """A draft that costs nothing and is always accepted."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One arm's speed as its forwards and its acceptance let expect it."""

    speedup: float
    """Over all tasks, a geometric mean as the measured one."""
    tasks: Mapping[str, float]
    """Predicted speedup by task."""
    engine_efficiency: float | None
    """Predicted ÷ measured decode time; None without the baseline's trials."""
    step: StepTime | None
    """None as above."""
    by_k: tuple[AtK, ...]
    """From k = 1 on, beyond the session's own k up to `MAX_K`; the session's own alone where trees were proposed."""
    bounds: Bounds

    @property
    def best(self) -> AtK:
        """The k that should be fastest, the smallest of equals; the session's own k counts as seen."""
        return max(self.by_k, key=lambda at: at.speedup)


def predict(
    arm: Arm,
    trials: Iterable[Trial],
    baseline: Iterable[Trial],
    *,
    latencies_of: Arm | None = None,
) -> Prediction | None:
    """Predicts an arm's speed; None where it has no trials with steps or no forward times.

    Args:
        arm: a draft's arm.
        trials: its standing trials.
        baseline: the baseline's standing trials of the same session; none are needed for the speedup.
        latencies_of: whose forward times to use instead, e.g. of the same draft on another machine.
    """
    trials = [trial for trial in trials if trial.steps]
    times = ForwardTimes.of((latencies_of or arm).latencies)
    if times is None or not trials or not arm.num_speculative_tokens:
        return None
    if any(trial.draft_forwards for trial in trials) and not times.has_draft:
        return None
    by_task: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        by_task[trial.task].append(trial)
    counts = {task: StepCounts.of(found) for task, found in by_task.items()}
    k = arm.num_speculative_tokens
    at_own_k = _at(counts, times, k, k)
    # Of a tree no smaller or larger one can be told from what was accepted.
    others = () if _branches(arm) else range(1, max(k, MAX_K) + 1)
    options = [_at(counts, times, other, k) for other in others] or [at_own_k]
    efficiency, step = _against_measured(trials, list(baseline), times)
    return Prediction(
        speedup=at_own_k.speedup,
        tasks={task: _speedup(entry.at(k), times) for task, entry in counts.items()},
        engine_efficiency=efficiency,
        step=step,
        by_k=tuple(options),
        bounds=_bounds(counts, times, k),
    )


def _branches(arm: Arm) -> bool:
    recipe = arm.draft.recipe if arm.draft else {}
    return recipe.get("speculate", {}).get("branch_above_probability") is not None


def _speedup(cost: StepCost, times: ForwardTimes) -> float:
    return cost.baseline_s(times) / cost.seconds(times)


def _at(counts: Mapping[str, StepCounts], times: ForwardTimes, k: int, own_k: int) -> AtK:
    costs = [entry.at(k) for entry in counts.values()]
    length = fsum(cost.emitted for cost in costs) / fsum(cost.steps for cost in costs)
    return AtK(k, _mean(_speedup(cost, times) for cost in costs), length, extrapolated=k > own_k)


def _bounds(counts: Mapping[str, StepCounts], times: ForwardTimes, k: int) -> Bounds:
    costs = [entry.at(k) for entry in counts.values()]
    return Bounds(
        free_draft=_mean(cost.baseline_s(times) / cost.verify_s(times) for cost in costs),
        perfect_draft=_mean(_perfect(cost, times, k, free=False) for cost in costs),
        ceiling=_mean(_perfect(cost, times, k, free=True) for cost in costs),
    )


def _perfect(cost: StepCost, times: ForwardTimes, k: int, *, free: bool) -> float:
    """Speedup if every step proposed k tokens and all were accepted."""
    context = cost.context
    if free:
        drafting = 0.0
    elif cost.draft_forwards:  # after each such step two tokens are new to the draft
        drafting = (k - 1) * times.draft_s(1, context) + times.draft_s(2, context)
    else:
        drafting = cost.lookup_s / cost.steps
    return (k + 1) * times.target_s(1, context) / (drafting + times.target_s(k + 1, context))


def _mean(values: Iterable[float]) -> float:
    mean = geometric_mean(values)
    assert mean is not None  # there is always a task
    return mean


def _against_measured(
    trials: Sequence[Trial], baseline: Sequence[Trial], times: ForwardTimes
) -> tuple[float | None, StepTime | None]:
    """Engine efficiency and a step's parts, over the cells that the baseline decoded too."""
    pairs = [(first, second) for first, second in pair_trials(baseline, trials) if first.steps]
    timed = fsum(first.steps * times.target_s(1, mean_context(first)) for first, _ in pairs)
    scale = ratio(fsum(first.verify_s for first, _ in pairs), timed) if pairs else None
    measured = fsum(second.decode_s for _, second in pairs)
    if not scale or not measured:
        return None, None
    steps = sum(second.steps for _, second in pairs)
    costs = [StepCounts.of([second]).at(len(second.offered)) for _, second in pairs]
    lookup = fsum(cost.lookup_s for cost in costs)
    drafting = scale * fsum(cost.draft_s(times) for cost in costs)
    predicted = drafting + lookup + scale * fsum(cost.verify_s(times) for cost in costs)
    proposing = fsum(second.propose_s for _, second in pairs)
    verifying = fsum(second.verify_s for _, second in pairs)
    drafting = min(drafting, proposing)
    rest = max(0.0, measured - proposing - verifying)
    parts = (drafting, proposing - drafting, verifying, rest, predicted)
    efficiency = ratio(predicted, measured)  # times near the smallest float give no finite one
    return efficiency, StepTime(*(1000 * part / steps for part in parts)) if efficiency else None
