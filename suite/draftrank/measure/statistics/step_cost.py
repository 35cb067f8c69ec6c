"""What a step of a draft costs in units of a baseline token, against a re-run of the same prompts.

With acceptance known, the time of a step is all that is left of a speedup. Divided by the time of a baseline
token beside it, it hardly depends on the machine's speed at that moment. The rest of what it depends on
(proposed and verified tokens per step, length of the context) is equal where a prompt's output, accept
histogram and proposal sizes are equal. So published and re-run ratios are compared prompt by prompt:

    log [(draft seconds ÷ baseline seconds) here ÷ (draft seconds ÷ baseline seconds) published]

over equal steps and tokens. The trimmed mean has a standard error from the spread between prompts, and one
more component: machines of one class differ, because memory and arithmetic are not equally fast on all of
them. This component was estimated on published results: 23 pairs of sessions that measured the same weights
(SmolLM2-135M and Gemma 3 270M on two-core EPYC hosts and on an H200; baselines up to a third apart) had mean
logarithms with a standard deviation of 0.016 beyond what their prompts explain (maximum likelihood).

The published seconds are contradicted when the 95 % interval lies above 1: a step costs surely more here. By
chance this happens to one honest re-run in forty, or one in twenty if machines differed by 0.02. Of those
pairs, in both directions and with four prompts of each task (median: 24 of equal work), 2 % were
contradicted. With a tenth cut from the published draft's times 86 % were, with a twentieth 33 %. With all
prompts these shares were 98 % and 57 %.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import mean, stdev

from draftrank.measure.records import BASELINE, CONTROL, SessionResult, Trial
from draftrank.measure.statistics.log_ratio import LogRatio, difference
from draftrank.measure.statistics.standing import standing_trials

MACHINE_SPREAD = 0.016
"""Standard deviation of the logarithm of a step's cost between two machines of one class."""
MACHINE_FREEDOM = 8
"""Degrees of freedom of that estimate: the sessions it comes from, minus the groups they form."""
TRIMMED = 0.1
"""Share of the prompts that is left out at either end, because single trials may take several times as long
by chance."""
MIN_PROMPTS_ALIKE = 5
"""Minimum of prompts of equal work for a judgement."""
Cell = tuple[str, str, int, int]


def compare_step_costs(
    published: SessionResult, again: SessionResult, draft: str
) -> tuple[LogRatio, int] | None:
    """The cost of a draft's step here ÷ the published one, with the spread of machines, and the prompts it rests on.

    Prompt turns count where draft and baseline did the same work in both sessions, of which `again` may have any part
    of the prompts. None with fewer than `MIN_PROMPTS_ALIKE` prompts.
    """
    before, now = _cells(published), _cells(again)
    prompts: dict[tuple[str, str], list[float]] = defaultdict(list)
    for cell in sorted(before.keys() & now.keys()):
        here, there = _log_cost(now[cell], draft), _log_cost(before[cell], draft)
        if here is not None and there is not None and _same_work([*before[cell], *now[cell]], draft):
            prompts[cell[:2]].append(here - there)
    if len(prompts) < MIN_PROMPTS_ALIKE:
        return None
    return between_machines([mean(turns) for turns in prompts.values()]), len(prompts)


def between_machines(logs: Sequence[float]) -> LogRatio:
    """The trimmed mean of the log ratios of two prompts or more; its error holds their spread and that of machines."""
    trimmed = int(TRIMMED * len(logs))
    kept = sorted(logs)[trimmed : len(logs) - trimmed]
    # Yuen (1974): the spread is that of all prompts, those beyond the kept ones moved to these.
    spread = stdev([kept[0]] * trimmed + kept + [kept[-1]] * trimmed)
    error = spread * math.sqrt((len(logs) - 1) / (len(kept) * (len(kept) - 1)))
    return difference(
        LogRatio(mean(kept), error, len(kept) - 1), LogRatio(0.0, MACHINE_SPREAD, MACHINE_FREEDOM)
    )


def _cells(result: SessionResult) -> dict[Cell, list[Trial]]:
    """Standing trials by prompt turn; by repeat too where each has a seed of its own."""
    found: dict[Cell, list[Trial]] = defaultdict(list)
    for trial in standing_trials(result.trials):
        repeat = 0 if result.session.mode.greedy else trial.repeat
        found[trial.task, trial.prompt, trial.turn, repeat].append(trial)
    return found


def _log_cost(trials: Iterable[Trial], draft: str) -> float | None:
    """Logarithm of the draft's seconds ÷ the baseline's, geometric means over repeats and both baseline arms."""
    by_arm: dict[bool, list[float]] = defaultdict(list)
    for trial in trials:
        if trial.arm in (draft, BASELINE, CONTROL) and trial.decode_s:
            by_arm[trial.arm == draft].append(math.log(trial.decode_s))
    return mean(by_arm[True]) - mean(by_arm[False]) if len(by_arm) == 2 else None


def _same_work(trials: Iterable[Trial], draft: str) -> bool:
    """Whether the draft's trials took the same steps, and the baseline's emitted the same tokens."""
    work = {
        (
            trial.arm == draft,
            trial.token_ids,
            trial.accept_histogram,
            trial.proposal_sizes,
            trial.draft_forwards,
        )
        for trial in trials
        if trial.arm in (draft, BASELINE, CONTROL)
    }
    return len(work) == 2
