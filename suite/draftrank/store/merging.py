"""The order of a result's parts, and how parts of one session become one again.

Pure functions over records: the same ones serve the store, the bundles and the site.
"""

from __future__ import annotations

from collections.abc import Iterable

from draftrank.errors import StoreError
from draftrank.measure.records import Arm, Session, SessionResult, Trial
from draftrank.measure.serving_records import ServingResult

_ARM_KINDS = ("baseline", "control", "draft", "reference")
_LEARNT = ("finished_at", "stopped_by", "numerics")
"""What a session knows only at its end."""
_JOINED = frozenset({"arms", "warnings", *_LEARNT})


def arm_order(arm: Arm) -> tuple[int, str]:
    """Sorts the baseline first, its control next, drafts by id."""
    return (_ARM_KINDS.index(arm.kind), arm.id)


def trial_order(trial: Trial) -> tuple[str, str, int, int, int, int, str]:
    """Sorts trials as they were run: those of the same prompt turn side by side, by place."""
    return (*trial.cell, trial.attempt, trial.position, trial.arm)


def session_order(result: SessionResult) -> tuple[str, str]:
    """Sorts sessions from the oldest to the newest."""
    return (result.session.created_at, result.session.id)


def in_order(result: SessionResult) -> SessionResult:
    """The same result in its one canonical form: arms and trials sorted, recipes as plain JSON."""
    session = plain(result.session)
    session = session.model_copy(update={"arms": tuple(sorted(session.arms, key=arm_order))})
    return SessionResult(session=session, trials=tuple(sorted(result.trials, key=trial_order)))


def rounds_in_order(result: ServingResult) -> ServingResult:
    """The same serving result with its rounds by concurrency, block, attempt and place."""
    rounds = sorted(
        result.rounds, key=lambda one: (one.concurrency, one.index, one.attempt, one.position, one.arm)
    )
    return result.model_copy(update={"rounds": tuple(rounds)})


def plain(session: Session) -> Session:
    """The session as it comes back from JSON (a tuple within a recipe becomes a list)."""
    return Session.model_validate(session.model_dump(mode="json"))


def merge(results: Iterable[SessionResult]) -> list[SessionResult]:
    """One result per session, oldest first, each in canonical form.

    Raises:
        StoreError: two parts of a session contradict each other.
    """
    merged: dict[str, SessionResult] = {}
    for result in results:
        known = merged.get(result.session.id)
        merged[result.session.id] = in_order(result) if known is None else join(known, result)
    return sorted(merged.values(), key=session_order)


def join(first: SessionResult, second: SessionResult) -> SessionResult:
    """Two parts of one session as one: arms, trials and warnings of both, each once.

    What both parts hold must agree; an end that only one of them knows is taken. The result does not depend
    on which part is the first: where their warnings differ, those of both are sorted.

    Raises:
        StoreError: they contradict each other; names the session and the part.
    """
    first, second = in_order(first), in_order(second)
    if first == second:
        return first
    one, other = first.session, second.session
    differing = [
        name
        for name in Session.model_fields
        if name not in _JOINED and getattr(one, name) != getattr(other, name)
    ]
    differing += [
        name
        for name in _LEARNT
        if None not in (getattr(one, name), getattr(other, name))
        and getattr(one, name) != getattr(other, name)
    ]
    if differing:
        raise _conflict(one.id, f"its {', '.join(differing)}")
    arms = {arm.id: arm for arm in one.arms}
    for arm in other.arms:
        if arms.setdefault(arm.id, arm) != arm:
            raise _conflict(one.id, f"the arm {arm.id!r}")
    trials = {trial.key: trial for trial in first.trials}
    for trial in second.trials:
        if trials.setdefault(trial.key, trial) != trial:
            raise _conflict(one.id, f"the trial {describe(trial)}")
    session = one.model_copy(
        update={
            "arms": tuple(sorted(arms.values(), key=arm_order)),
            "warnings": _both_warnings(one.warnings, other.warnings),
            **{name: getattr(one, name) or getattr(other, name) for name in _LEARNT},
        }
    )
    return SessionResult(session=session, trials=tuple(sorted(trials.values(), key=trial_order)))


def _both_warnings(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    return one if one == other else tuple(sorted({*one, *other}))


def describe(trial: Trial) -> str:
    """A trial's key for people."""
    return (
        f"of arm {trial.arm!r}, task {trial.task!r}, prompt {trial.prompt!r}, "
        f"turn {trial.turn}, repeat {trial.repeat}" + (f", attempt {trial.attempt}" if trial.attempt else "")
    )


def _conflict(session_id: str, what: str) -> StoreError:
    return StoreError(
        f"session {session_id}: two of its parts differ in {what} "
        "(keep the one that was measured, remove the other)"
    )
