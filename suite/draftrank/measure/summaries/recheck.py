"""A published result against a re-run of some of its prompts: what must agree, and how closely.

The weights determine greedy outputs and accept histograms, but for rounding: another build of the engine or
another processor adds in another order, which may change a choice between almost equal tokens. So outputs may
differ by ties: both tokens are the target's best one, as far as the backend's logits can tell. Accept histograms
must be equal in fp32 where outputs are; in any other dtype they may differ slightly.
Seconds belong to a machine and are compared within one machine class and one minor version: the cost of a step, prompt by prompt,
must not be surely higher here than published (`measure.statistics.step_cost`), and the intervals of the
speedups must overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from draftrank.measure.cost.acceptance import sum_acceptance
from draftrank.measure.fidelity.divergence import Judged, first_difference
from draftrank.measure.records import BASELINE, CONTROL, SessionResult, Trial
from draftrank.measure.statistics.estimates import Interval, compare_speed
from draftrank.measure.statistics.standing import standing_trials
from draftrank.measure.statistics.step_cost import MIN_PROMPTS_ALIKE, compare_step_costs

HISTOGRAM_SHARE = 0.10
"""Share of steps by which summed histograms may differ where rounding may have turned choices."""
RETRAINED = 0.10
"""Relative difference by which a draft that was trained anew may differ from the published one."""
SHOWN = 3

Status = Literal["holds", "fails", "skipped"]
Judge = Callable[[Trial, Trial, int], Judged]
"""Of a published trial, its re-run and the index of their first difference: what the difference is."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    """`skipped`: it could not be compared; says neither."""
    detail: str
    """What was found, in words."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A published trial and its re-run."""

    published: Trial
    again: Trial

    @property
    def place(self) -> str:
        """For people: `ngram at code/HumanEval-3, turn 0, repeat 1`."""
        one = self.published
        return f"{one.arm} at {one.task}/{one.prompt}, turn {one.turn}, repeat {one.repeat}"


def pair_up(published: SessionResult, again: SessionResult) -> tuple[Pair, ...]:
    """Every published trial of the re-run prompts with its re-run.

    Greedy repeats are alike, so each is set against the one re-run; sampled ones have their own seeds.
    Later turns count only where the answers before them were the same, else the question was another.
    """
    greedy = published.session.mode.greedy
    reruns = {(trial.arm, *trial.cell): trial for trial in standing_trials(again.trials)}
    found = []
    for trial in published.trials:
        repeat = 0 if greedy else trial.repeat
        rerun = reruns.get((trial.arm, trial.task, trial.prompt, trial.turn, repeat))
        if rerun is not None:
            found.append(Pair(trial, rerun))
    answered_otherwise = {
        (pair.published.task, pair.published.prompt, pair.published.turn)
        for pair in found
        if pair.published.arm == BASELINE
        and (pair.published.repeat, pair.published.attempt) == (0, 0)
        and pair.published.token_ids != pair.again.token_ids
    }
    return tuple(
        pair
        for pair in found
        if not any(
            (pair.published.task, pair.published.prompt, turn) in answered_otherwise
            for turn in range(pair.published.turn)
        )
    )


def check_outputs(pairs: Sequence[Pair], judge: Judge) -> Check:
    """Emitted tokens, by their hashes; differences are judged tie or break."""
    broken, ties, unjudged = [], 0, 0
    for pair in pairs:
        if pair.published.token_ids_sha256 == pair.again.token_ids_sha256:
            continue
        index = first_difference(pair.published.token_ids, pair.again.token_ids)
        assert index is not None
        judged = judge(pair.published, pair.again, index)
        if judged == "tie":
            ties += 1
        elif judged == "unjudged":
            unjudged += 1
        else:
            broken.append(f"{pair.place} from token {index} on")
    if not pairs:
        return Check("outputs", "fails", "the bundle has no trial of the prompts that were run again")
    if broken:
        return Check("outputs", "fails", f"{len(broken)} of {len(pairs)} differ: {_some(broken)}")
    if unjudged:
        told = f"{unjudged} of {len(pairs)} differ, and nobody can say whether by rounding alone"
        return Check("outputs", "skipped", told)
    tied = f", {ties} of them but for ties" if ties else ""
    return Check("outputs", "holds", f"{len(pairs)} of {len(pairs)} are what the target says here{tied}")


def check_prompt_lengths(pairs: Sequence[Pair]) -> Check:
    """How many tokens each prompt was."""
    wrong = [
        f"{pair.place}: {pair.published.prompt_tokens} published, {pair.again.prompt_tokens} here"
        for pair in pairs
        if pair.published.prompt_tokens != pair.again.prompt_tokens
    ]
    if wrong:
        return Check("prompt lengths", "fails", f"{len(wrong)} of {len(pairs)} differ: {_some(wrong)}")
    return Check("prompt lengths", "holds", f"{len(pairs)} of {len(pairs)} are equal")


def check_acceptance(pairs: Sequence[Pair], dtype: str, *, same_weights: bool) -> Check:
    """How many proposed tokens each step accepted.

    Equal weights in fp32: every histogram and count is equal. In any other dtype: summed histograms of the
    outputs that agree differ in at most `HISTOGRAM_SHARE` of their steps. Other weights (a draft that was
    trained anew): the ratio of acceptance lengths lies within `RETRAINED` of 1, as far as can be told.
    """
    name = "accept histograms"
    if not same_weights:
        return _check_acceptance_lengths(pairs)
    agreeing = [pair for pair in pairs if pair.published.token_ids == pair.again.token_ids]
    if not agreeing:
        return Check(name, "skipped", "no output agrees, so no histogram can")
    if dtype == "fp32":
        wrong = [
            f"{pair.place}: {what}"
            for pair in agreeing
            if (what := _counts_differ(pair.published, pair.again))
        ]
        if wrong:
            return Check(name, "fails", f"{len(wrong)} of {len(agreeing)} differ: {_some(wrong)}")
        return Check(name, "holds", f"{len(agreeing)} of {len(agreeing)} are equal")
    before = sum_acceptance(pair.published for pair in agreeing).histogram
    now = sum_acceptance(pair.again for pair in agreeing).histogram
    share = _distance(before, now)
    told = f"{before} published, {now} here: they differ in {share:.1%} of the steps"
    if share > HISTOGRAM_SHARE:
        return Check(name, "fails", f"{told}, more than the {HISTOGRAM_SHARE:.0%} that rounding explains")
    return Check(name, "holds", told)


def check_speed(published: SessionResult, again: SessionResult, draft: str, *, same_weights: bool) -> Check:
    """Speedups over the same prompts, each interval stretched by its own session's A/A."""
    prompts = {(trial.task, trial.prompt) for trial in again.trials}
    before, now = _speed(published, draft, prompts), _speed(again, draft, prompts)
    if before is None or now is None:
        return Check("speedup", "skipped", "an interval needs two prompts of each task and an A/A comparison")
    if not same_weights:
        now = (now[0], Interval(now[1].low * (1 - RETRAINED), now[1].high * (1 + RETRAINED)))
    told = f"{before[0]:.2f}× ({before[1]}) published, {now[0]:.2f}× ({now[1]}) here, over the same prompts"
    if before[1].above(now[1]) or now[1].above(before[1]):
        return Check("speedup", "fails", f"{told}: the intervals exclude each other")
    return Check("speedup", "holds", told)


def check_step_cost(published: SessionResult, again: SessionResult, draft: str) -> Check:
    """Seconds of a step in units of a baseline token, over prompts with equal outputs, histograms and proposal
    sizes: published ones that are surely lower than here were not measured on such a machine."""
    found = compare_step_costs(published, again, draft)
    if found is None:
        told = f"fewer than {MIN_PROMPTS_ALIKE} prompts with equal outputs and histograms: speedups alone are compared"
        return Check("step cost", "skipped", told)
    cost, prompts = found
    interval = Interval(*cost.ends())
    told = (
        f"in units of a baseline token, a step takes {cost.ratio:.3f} times as long here as published "
        f"({interval}, over {prompts} prompts, between machines of one class)"
    )
    if interval.low > 1.0:
        return Check("step cost", "fails", f"{told}: the published seconds are too short")
    return Check("step cost", "holds", told)


def _check_acceptance_lengths(pairs: Sequence[Pair]) -> Check:
    # A token's "time" in steps: the ratio of these is the ratio of acceptance lengths, with its interval.
    before = [_in_steps(pair.published) for pair in pairs]
    now = [_in_steps(pair.again, repeat=pair.published.repeat) for pair in pairs]
    ratio = compare_speed(before, now).overall
    name = "acceptance length"
    if ratio is None or ratio.interval is None:
        return Check(name, "skipped", "its interval needs two prompts of each task")
    interval = ratio.interval
    told = f"{ratio.value:.2f} times the published one ({interval})"
    if interval.low > 1 + RETRAINED or interval.high < 1 - RETRAINED:
        return Check(name, "fails", f"{told}: more than training anew explains ({RETRAINED:.0%})")
    return Check(name, "holds", told)


def _in_steps(trial: Trial, repeat: int | None = None) -> Trial:
    kept = trial.repeat if repeat is None else repeat
    return trial.model_copy(update={"decode_s": float(trial.steps), "repeat": kept, "attempt": 0})


def _speed(result: SessionResult, draft: str, prompts: set[tuple[str, str]]) -> tuple[float, Interval] | None:
    trials = [trial for trial in standing_trials(result.trials) if (trial.task, trial.prompt) in prompts]
    arms = {arm: [trial for trial in trials if trial.arm == arm] for arm in (BASELINE, CONTROL, draft)}
    speed = compare_speed(arms[BASELINE], arms[draft]).overall
    noise = compare_speed(arms[BASELINE], arms[CONTROL]).overall
    if speed is None or speed.interval is None or noise is None or noise.interval is None:
        return None
    low = speed.interval.low * min(1.0, noise.interval.low)
    return speed.value, Interval(low, speed.interval.high * max(1.0, noise.interval.high))


def _counts_differ(published: Trial, again: Trial) -> str | None:
    for name in ("accept_histogram", "offered", "proposal_sizes", "proposed", "draft_forwards"):
        before, now = getattr(published, name), getattr(again, name)
        if before != now and before is not None:
            return f"{name} {before} published, {now} here"
    return None


def _distance(first: Sequence[int], second: Sequence[int]) -> float:
    """Total variation distance of two histograms, each scaled to sum to 1."""
    sums = sum(first) or 1, sum(second) or 1
    return sum(abs(a / sums[0] - b / sums[1]) for a, b in zip(first, second, strict=True)) / 2


def _some(sentences: Sequence[str]) -> str:
    more = [f"and {len(sentences) - SHOWN} more"] if len(sentences) > SHOWN else []
    return "; ".join([*sentences[:SHOWN], *more])
