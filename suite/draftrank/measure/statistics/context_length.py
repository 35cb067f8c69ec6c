"""Speedup and acceptance against context length.

Prompt turns are grouped by the number of their prompt's tokens into octaves around powers of two: 1,024 stands for 725 to
1,448 tokens, 4,096 for 2,897 to 5,792. An octave is shown if every task of the session has at least four prompts in it, and
only beside another one. So two lengths differ by the context and not by the kind of prompt, and a suite whose tasks have one
length each shows none. Within an octave the speedup is that of the session: the geometric mean over tasks, with its
interval.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from draftrank.measure.cost.acceptance import Acceptance, sum_acceptance
from draftrank.measure.records import Trial
from draftrank.measure.statistics.estimates import Estimate, compare_speed

MIN_PROMPTS_AT_LENGTH = 4
"""Prompts that every task must have in an octave of context length, so that the octave is shown."""


@dataclass(frozen=True, slots=True)
class AtLength:
    """One arm in the prompt turns of one octave."""

    prompt_tokens: int
    """Mean number of prompt tokens, rounded."""
    prompts: int
    """Prompts over all tasks."""
    speedup: Estimate | None
    """Over the baseline on the same prompt turns."""
    acceptance: Acceptance


def shown_octaves(trials: Sequence[Trial], tasks: Collection[str]) -> tuple[int, ...]:
    """The octaves, by their exponents, in which every task has enough prompts: two or more, ascending, or none.

    Args:
        trials: the baseline's, of the turns that are to be grouped.
        tasks: ids of the session's tasks.
    """
    prompts: dict[int, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for trial in trials:
        prompts[octave_of(trial)][trial.task].add(trial.prompt)
    found = [
        octave
        for octave, by_task in prompts.items()
        if all(len(by_task.get(task, ())) >= MIN_PROMPTS_AT_LENGTH for task in tasks)
    ]
    return tuple(sorted(found)) if len(found) > 1 else ()


def by_length(
    baseline: Sequence[Trial], trials: Sequence[Trial], octaves: Sequence[int]
) -> tuple[AtLength, ...]:
    """An arm's figures in each octave in which it has trials, in the order given.

    Args:
        baseline: the baseline's standing trials.
        trials: the arm's.
        octaves: as `shown_octaves` gives them.
    """
    found = []
    for octave in octaves:
        own = [trial for trial in trials if octave_of(trial) == octave]
        reference = [trial for trial in baseline if octave_of(trial) == octave]
        if own:
            found.append(
                AtLength(
                    round(math.fsum(trial.prompt_tokens for trial in own) / len(own)),
                    len({(trial.task, trial.prompt) for trial in own}),
                    compare_speed(reference, own).overall,
                    sum_acceptance(own),
                )
            )
    return tuple(found)


def octave_of(trial: Trial) -> int:
    """The exponent of the power of two that the trial's prompt is nearest to, as a ratio of tokens."""
    return round(math.log2(max(1, trial.prompt_tokens)))
