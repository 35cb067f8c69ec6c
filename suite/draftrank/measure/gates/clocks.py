"""Two clocks that must agree: the stopwatch that gives a trial's seconds, and the time of day.

Trials of one process follow one another, so each must end before the next begins, and between two that
follow directly only a little time passes: to keep the trial, and to get ready for the next. A stopwatch
that jumps, or that runs slow for one arm, breaks one of both rules.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import pairwise
from statistics import median

from draftrank.measure.gates.audit import place_of
from draftrank.measure.records import Trial

OVERLAP_S = 0.05
"""Seconds by which a trial may reach into the next."""
OVERLAP_SHARE = 0.01
"""Share of its own time by which it may do so too: clocks are set right while a session runs."""
PAUSE_S = 0.25
"""Seconds that may pass between two trials beyond what is usual in the session."""
LOST_SHARE = 0.05
"""Share of an arm's time that may be missing in the gaps between its trials and the next."""


def overlaps(trials: Iterable[Trial]) -> Iterator[tuple[Trial, str]]:
    """Trials that ended, by their own seconds, only after the next of their process had begun.

    Args:
        trials: of all arms.
    """
    for first, second in _in_order(trials):
        gap, own = began_at(second) - began_at(first), taken(first)
        if own > gap + OVERLAP_S + OVERLAP_SHARE * own:
            yield (
                first,
                f"{place_of(first)} took {own:.3f} s, but the next began {gap:.3f} s after it began",
            )


def lost_seconds(trials: Iterable[Trial]) -> Mapping[str, tuple[float, float]]:
    """By arm: seconds missing between its trials and those that directly followed, and its own seconds.

    Missing is what exceeds the usual gap (the least of the arms' medians) by more than `PAUSE_S`. Trials that follow directly
    stand in neighbouring places of one block; elsewhere the session may have looked at outputs or waited.

    Args:
        trials: of all arms.
    """
    gaps: dict[str, list[float]] = defaultdict(list)
    own: dict[str, float] = defaultdict(float)
    for first, second in _in_order(trials):
        same_block = (first.cell, first.attempt) == (second.cell, second.attempt)
        if same_block and second.position == first.position + 1:
            gaps[first.arm].append(began_at(second) - began_at(first) - taken(first))
            own[first.arm] += taken(first)
    # An arm whose trials reach into the next has gaps below 0, which are no measure for others.
    usual = max(0.0, min((median(found) for found in gaps.values()), default=0.0))
    return {
        arm: (math.fsum(gap - usual for gap in found if gap - usual > PAUSE_S), own[arm])
        for arm, found in gaps.items()
    }


def pause_within(trials: Iterable[Trial]) -> float | None:
    """Seconds that passed unseen between two trials of one block, beyond the least that passed between others; None
    where they are no more than what may pass.

    Args:
        trials: of one attempt at one prompt turn.
    """
    gaps = [
        began_at(second) - began_at(first) - taken(first)
        for first, second in _in_order(trials)
        if second.position == first.position + 1
    ]
    longest = max(gaps, default=0.0) - max(0.0, min(gaps, default=0.0))
    return longest if longest > PAUSE_S else None


def _in_order(trials: Iterable[Trial]) -> Iterator[tuple[Trial, Trial]]:
    """Neighbours in time, process by process."""
    processes: dict[int, list[Trial]] = defaultdict(list)
    for trial in trials:
        processes[trial.process].append(trial)
    for of_process in processes.values():
        yield from pairwise(sorted(of_process, key=lambda trial: (began_at(trial), trial.position)))


def began_at(trial: Trial) -> float:
    """When it began, in seconds since 1970."""
    return seconds_of(trial.started_at)


def seconds_of(moment: str) -> float:
    """A time of the records, which are UTC, in seconds since 1970.

    Raises:
        ValueError: it is no time.
    """
    found = datetime.fromisoformat(moment)
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def taken(trial: Trial) -> float:
    """Seconds that it says it took."""
    return trial.prefill_s + trial.decode_s
