"""Two clocks that must agree: the stopwatch that gives a trial's seconds, and the time of day.

Trials of one process follow one another, so each must end before the next begins, and between two that
follow directly only a little time passes: to keep the trial, and to get ready for the next. That time is
the same after every arm and does not grow with the trial. A stopwatch that jumps, or that runs slow for one
arm, breaks one of these rules, and so do seconds that were changed afterwards: a tenth cut from every trial
of an arm leaves a gap of a tenth of its time behind each.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import pairwise
from statistics import median

from draftrank.measure.gates.audit import place_of
from draftrank.measure.records import Trial

OVERLAP_S = 0.05
"""Seconds by which a trial may overlap the next."""
OVERLAP_SHARE = 0.01
"""Share of its own time by which it may do so too, because clocks are adjusted while a session runs."""
PAUSE_S = 0.25
"""Seconds that may pass between two trials beyond the session's usual gap."""
LOST_SHARE = 0.05
"""Share of an arm's time that may be missing in the gaps between its trials and the next."""
GAP_SHARE = 0.02
"""Share of a trial's decode time by which the median gap after an arm's trials may differ from the usual one, beside
four standard errors of that median. Honest published results stay below 0.005 on CPUs."""
GAP_VARIES = 0.5
"""Share of the usual gap by which it may differ too. The largest in published results is 0.25."""
GAP_S = 0.003
"""Seconds by which it may differ in any case."""
MIN_GAPS = 5
"""Minimum of gaps after an arm's trials for judging their median."""
_ERRORS = 4.0
"""Standard errors by which a median must exceed its bound: where the gaps themselves vary, less can be said."""
_ERROR_OF_MEDIAN = 1.2533 * 1.4826
"""Standard error of a normal sample's median, times the square root of its size, ÷ its median absolute deviation."""


def overlaps(trials: Iterable[Trial]) -> Iterator[tuple[Trial, str]]:
    """Trials, of all arms, that ended by their own seconds only after the next of their process had begun."""
    for first, second in _in_order(trials):
        gap, own = began_at(second) - began_at(first), taken(first)
        if own > gap + OVERLAP_S + OVERLAP_SHARE * own:
            yield (
                first,
                f"{place_of(first)} took {own:.3f} s, but the next began {gap:.3f} s after it began",
            )


def holes(trials: Iterable[Trial]) -> Iterator[tuple[str, str]]:
    """Arms whose stated seconds are not those that the time of day leaves for them, each with a sentence.

    Looks at trials of all arms that follow directly: in neighbouring places of one block. Elsewhere the session may
    have looked at outputs or waited. An arm is named when

    - single gaps beyond `PAUSE_S` add up to more than `LOST_SHARE` of its time (trials that were cut, or a clock
      that jumped), or
    - the median gap is longer than the usual one by more than `GAP_SHARE` of its decode time, `GAP_VARIES` of the
      usual gap and `GAP_S` (all its trials were cut), or
    - the median gap is below 0 by more than `GAP_S` (all its trials were stretched).
    """
    found: dict[str, list[tuple[float, Trial]]] = defaultdict(list)
    for first, second in _in_order(trials):
        same_block = (first.cell, first.attempt) == (second.cell, second.attempt)
        if same_block and second.position == first.position + 1:
            found[first.arm].append((began_at(second) - began_at(first) - taken(first), first))
    medians = {arm: median(gap for gap, _ in gaps) for arm, gaps in found.items()}
    # An arm whose trials reach into the next has gaps below 0, which are no measure for others.
    usual = min((gap for gap in medians.values() if gap >= 0.0), default=0.0)
    for arm, gaps in found.items():
        own = math.fsum(taken(trial) for _, trial in gaps)
        missing = math.fsum(gap - usual for gap, _ in gaps if gap - usual > PAUSE_S)
        if missing > LOST_SHARE * own:
            yield (
                arm,
                f"after trials of {arm} the clock went on for {missing:.2f} s that no trial states, beside {own:.2f} s of its own",
            )
        shares = [(gap - usual) / trial.decode_s for gap, trial in gaps if trial.decode_s]
        if len(shares) < MIN_GAPS:
            continue
        bound = max(GAP_S, GAP_VARIES * usual) / median(trial.decode_s for _, trial in gaps if trial.decode_s)
        if medians[arm] < -GAP_S:
            yield arm, f"trials of {arm} reach {-medians[arm]:.3f} s into the next one (median)"
        elif median(shares) > max(GAP_SHARE, bound) + _ERRORS * _error_of_median(shares):
            yield (
                arm,
                f"the clock goes on for {median(shares):.1%} of each trial of {arm} after it states to have ended (median)",
            )


def _error_of_median(values: list[float]) -> float:
    centre = median(values)
    return _ERROR_OF_MEDIAN * median(abs(value - centre) for value in values) / math.sqrt(len(values))


def pause_within(trials: Iterable[Trial]) -> float | None:
    """Seconds that passed unseen between two trials of one attempt at a prompt turn, beyond the least that passed
    between others; None where they are no more than what may pass."""
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
