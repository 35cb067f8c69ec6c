"""Whether the stated seconds fit the clock: trials of a process follow one another.

A trial's duration and its start are taken by different clocks, so a duration that was made longer
afterwards runs into the next trial, and one that was made shorter leaves a hole that the others' trials
do not have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from statistics import median

from draftrank.measure.records import BASELINE, SessionResult, Trial

SLACK_S = 0.005
"""Times of day are kept in whole milliseconds, and clocks are set a little now and then."""
DRIFT = 0.001
"""Relative difference of two clocks that is no matter."""
HOLE_S = 0.05
HOLE_SHARE = 0.5
"""An arm's usual hole may exceed the baseline's by this time, or this share of its stated duration."""
LEAST_HOLES = 3
"""Pairs of neighbours below which holes are not judged."""


def timeline_problems(result: SessionResult) -> list[str]:
    """What cannot be, in sentences; empty when the times fit.

    A bundle holds only some of its session's arms, so holes are judged where both neighbours are there.
    """
    session = result.session
    try:
        for text in (session.created_at, session.finished_at, *(trial.started_at for trial in result.trials)):
            _time(text or session.created_at)
    except ValueError as error:
        return [f"a time is none: {error}"]
    trials = sorted(result.trials, key=lambda trial: (trial.process, _time(trial.started_at)))
    return [
        *_parts(trials),
        *_overlaps(trials),
        *_outside(trials, session.created_at, session.finished_at),
        *_holes(trials),
    ]


def _parts(trials: Sequence[Trial]) -> Iterator[str]:
    found = [
        trial for trial in trials if trial.propose_s + trial.verify_s > trial.decode_s * (1 + DRIFT) + SLACK_S
    ]
    if found:
        yield f"{_first(found)}: proposing and verifying took longer than decoding, of which they are parts"


def _overlaps(trials: Sequence[Trial]) -> Iterator[str]:
    found = [
        one
        for one, following in pairwise(trials)
        if one.process == following.process and _hole(one, following) < -SLACK_S - DRIFT * _duration(one)
    ]
    if found:
        yield f"{_first(found)}: its stated seconds run into the next trial"


def _outside(trials: Sequence[Trial], created_at: str, finished_at: str | None) -> Iterator[str]:
    early = [trial for trial in trials if _time(trial.started_at) < _time(created_at) - SLACK_S]
    if early:
        yield f"{_first(early)}: it began before its session"
    if finished_at is not None:
        end = _time(finished_at)
        late = [
            trial
            for trial in trials
            if _time(trial.started_at) + _duration(trial) * (1 - DRIFT) > end + SLACK_S
        ]
        if late:
            yield f"{_first(late)}: it ended after its session"


def _holes(trials: Sequence[Trial]) -> Iterator[str]:
    holes: dict[str, list[float]] = defaultdict(list)
    durations: dict[str, list[float]] = defaultdict(list)
    for one, following in pairwise(trials):
        beside = (one.process, one.cell, one.attempt) == (
            following.process,
            following.cell,
            following.attempt,
        )
        if beside and following.position == one.position + 1:
            holes[one.arm].append(_hole(one, following))
            durations[one.arm].append(_duration(one))
    if len(holes[BASELINE]) < LEAST_HOLES:
        return
    usual = median(holes[BASELINE])
    for arm, found in holes.items():
        allowed = max(HOLE_S, HOLE_SHARE * median(durations[arm]))
        if arm != BASELINE and len(found) >= LEAST_HOLES and median(found) - usual > allowed:
            yield (
                f"after trials of {arm} the clock went on for {median(found):.2f} s that no trial states, "
                f"after the baseline's for {usual:.2f} s"
            )


def _hole(one: Trial, following: Trial) -> float:
    return _time(following.started_at) - _time(one.started_at) - _duration(one)


def _duration(trial: Trial) -> float:
    return trial.prefill_s + trial.decode_s


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _first(found: Sequence[Trial]) -> str:
    trial = found[0]
    return f"{len(found)} trials, first {trial.arm} at {'/'.join(map(str, trial.cell))}"
