"""Whether the stated seconds of a whole result fit the times of day it states.

A trial's duration and its start are taken by different clocks, so a duration that was made longer
afterwards runs into the next trial, and one that was made shorter leaves a hole that other arms' trials
do not have. The gate `implausible-clock` asks the same of one draft; this asks it of all arms, and of the
session's own beginning and end. Clocks are compared in the attempts that count: a session decodes a prompt
turn again because its clocks disagreed, and keeps the first attempt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from draftrank.measure.gates.audit import place_of, time_faults
from draftrank.measure.gates.clocks import (
    OVERLAP_S,
    began_at,
    holes,
    overlaps,
    seconds_of,
    taken,
)
from draftrank.measure.records import SessionResult, Trial
from draftrank.measure.statistics.standing import standing_trials


def timeline_problems(result: SessionResult) -> list[str]:
    """What cannot be, in sentences; empty when the times fit.

    A bundle holds only some of its session's arms, so holes are judged where both neighbours are there.
    """
    session, trials = result.session, result.trials
    standing = standing_trials(trials)
    keys = {trial.key for trial in standing}
    try:
        return [
            *_once(f"{place_of(trial)}: {fault}" for trial in trials for fault in time_faults(trial)),
            *_once(fault for trial, fault in overlaps(trials) if trial.key in keys),
            *_outside(trials, session.created_at, session.finished_at),
            *(hole for _, hole in holes(standing)),
        ]
    except ValueError as error:
        return [f"a time is none: {error}"]


def _once(faults: Iterator[str]) -> Iterator[str]:
    found = list(faults)
    if found:
        yield found[0] + (f" (and {len(found) - 1} more)" if len(found) > 1 else "")


def _outside(trials: Sequence[Trial], created_at: str, finished_at: str | None) -> Iterator[str]:
    begin = seconds_of(created_at)
    yield from _once(
        f"{place_of(trial)}: it began before its session"
        for trial in trials
        if began_at(trial) < begin - OVERLAP_S
    )
    if finished_at is not None:
        end = seconds_of(finished_at)
        yield from _once(
            f"{place_of(trial)}: it ended after its session"
            for trial in trials
            if began_at(trial) + taken(trial) > end + OVERLAP_S
        )
