"""Whether the stated seconds of a whole result fit the times of day it states.

A trial's duration and its start are taken by different clocks, so a duration that was made longer
afterwards runs into the next trial, and one that was made shorter leaves a hole that other arms' trials
do not have. The gate `implausible-clock` asks the same of one draft; this asks it of all arms, and of the
session's own beginning and end. Clocks are compared in the attempts that count: a session decodes a prompt
turn again because its clocks disagreed, and keeps the first attempt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from draftrank.measure.gates.audit import first_of, place_of, time_faults
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
        kinds = (
            (f"{place_of(trial)}: {fault}" for trial in trials for fault in time_faults(trial)),
            (fault for trial, fault in overlaps(trials) if trial.key in keys),
            _begun_before(trials, session.created_at),
            _ended_after(trials, session.finished_at),
        )
        found = [*map(first_of, kinds), *(hole for _, hole in holes(standing))]
        return [fault for fault in found if fault is not None]
    except ValueError as error:
        return [f"a time is none: {error}"]


def _begun_before(trials: Sequence[Trial], created_at: str) -> Iterator[str]:
    begin = seconds_of(created_at)
    for trial in trials:
        if began_at(trial) < begin - OVERLAP_S:
            yield f"{place_of(trial)}: it began before its session"


def _ended_after(trials: Sequence[Trial], finished_at: str | None) -> Iterator[str]:
    end = math.inf if finished_at is None else seconds_of(finished_at)
    for trial in trials:
        if began_at(trial) + taken(trial) > end + OVERLAP_S:
            yield f"{place_of(trial)}: it ended after its session"
