"""Two arms of one session against each other: how much faster, how sure, and when one cannot tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from draftrank.errors import InvalidInputError
from draftrank.measure.records import Session, SessionResult, Trial
from draftrank.measure.statistics.estimates import Estimate, Interval, compare_speed
from draftrank.measure.statistics.standing import standing_trials

Answer = Literal["faster", "slower", "can't tell"]


@dataclass(frozen=True, slots=True)
class SpeedRatio:
    """The first arm's speed as a multiple of the second's, from prompts that both decoded."""

    value: float
    interval: Interval | None
    """95 % interval; None where it has no bounds (fewer than two prompts in a task)."""
    probability: float | None
    """Probability that the first arm is the faster one; None without an interval."""

    @property
    def answer(self) -> Answer:
        """Whether the first arm is faster: only if the interval lies on one side of 1."""
        if self.interval is None or self.interval.contains(1.0):
            return "can't tell"
        return "faster" if self.value > 1.0 else "slower"


@dataclass(frozen=True, slots=True)
class ArmComparison:
    """Two arms of one session, compared."""

    session: Session
    first: str
    second: str
    overall: SpeedRatio | None
    """Geometric mean over the tasks; None where they have nothing in common."""
    tasks: Mapping[str, SpeedRatio]
    """By task id, in the session's order."""
    cells: int
    """Pairs of trials it rests on."""


def compare(
    results: Iterable[SessionResult],
    first: str,
    second: str,
    *,
    target: str | None = None,
    session: str | None = None,
) -> ArmComparison:
    """Compares two arms (drafts by id, or `baseline`) in the newest session that holds trials of both, among those of
    a target or the one of an id where these are named.

    Raises:
        InvalidInputError: no session holds both, or it is twice the same arm.
    """
    if first == second:
        raise InvalidInputError.single(f"{first!r} is compared with itself", fix="name two different drafts")
    among = [
        result
        for result in results
        if target in (None, result.session.target) and session in (None, result.session.id)
    ]
    newest_first = sorted(
        among, key=lambda found: (found.session.created_at, found.session.id, len(found.trials)), reverse=True
    )
    for result in newest_first:
        trials = standing_trials(result.trials)
        if {first, second} <= {trial.arm for trial in trials}:
            return _compare(result.session, trials, first, second)
    raise _nothing_holds_both(among, first, second, session)


def _compare(session: Session, trials: Iterable[Trial], first: str, second: str) -> ArmComparison:
    by_arm: dict[str, list[Trial]] = {first: [], second: []}
    for trial in trials:
        if trial.arm in by_arm:
            by_arm[trial.arm].append(trial)
    found = compare_speed(by_arm[second], by_arm[first])
    return ArmComparison(
        session,
        first,
        second,
        _ratio(found.overall) if found.overall else None,
        {task.task: _ratio(found.tasks[task.task]) for task in session.tasks if task.task in found.tasks},
        found.cells,
    )


def _ratio(estimate: Estimate) -> SpeedRatio:
    probability = estimate.log.above_one if estimate.log is not None else None
    return SpeedRatio(estimate.value, estimate.interval, probability)


def _nothing_holds_both(
    among: Iterable[SessionResult], first: str, second: str, session: str | None
) -> InvalidInputError:
    measured = {trial.arm for result in among for trial in result.trials}
    for name in (first, second):
        if name not in measured:
            return InvalidInputError.single(
                f"no result of {name!r}" + (f" in session {session!r}" if session else ""),
                fix=f"known: {', '.join(sorted(measured)) or 'none yet; measure with `draftrank run`'}",
            )
    return InvalidInputError.single(
        f"no session measured both {first!r} and {second!r}",
        fix="measure them together: `draftrank run TARGET` with a --draft for each",
    )
