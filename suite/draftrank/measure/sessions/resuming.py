"""Why a session that is not complete is not resumed: what has changed in its plan since.

Records hold a hash of the plan, and most of its parts beside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from draftrank.measure.records import BASELINE, CONTROL, Arm, Machine, Session
from draftrank.measure.serving_records import ServingArm, ServingSession

_ASKED = ("mode", "server")
"""Beside target, suite, drafts and machine class: fields that tell one series of sessions from another."""
_NOT_PLANNED = frozenset(
    {"id", "created_at", "plan_sha256", "finished_at", "warnings", "environment", "stopped_by", "numerics"}
    | {"target_parameters", "skipped_tasks", "server_declared", "turns", "arms", "machine"}
)
"""Fields of headers that a plan does not decide, that others follow from, or that are compared by their parts."""
_OF_ARM = ("num_speculative_tokens", "backend", "dtype", "speculation", "export_sha256")


def not_resumed(known: Sequence[Session | ServingSession], now: Session | ServingSession) -> str | None:
    """Why the newest session of the same drafts, which is not complete, is not resumed where another plan begins; None where
    there is none, or it is complete.

    Args:
        known: sessions of the same target and suite, from the oldest to the newest.
        now: the header of a session that measures the plan.
    """
    alike = [
        one
        for one in known
        if {*_drafts(one)} == {*_drafts(now)}
        and one.machine.machine_class == now.machine.machine_class
        and all(getattr(one, name, None) == getattr(now, name, None) for name in _ASKED)
    ]
    if not alike or _complete(alike[-1]):
        return None
    last = alike[-1]
    parts = (
        ", ".join(_differing(last, now))
        or "something that no record tells, such as a file of the target or --pause"
    )
    return (
        f"session {last.id} of the same drafts is not complete and cannot be resumed, because of what has changed since: "
        f"{parts}; all is measured anew"
    )


def _drafts(session: Session | ServingSession) -> Mapping[str, Arm | ServingArm]:
    return {arm.id: arm for arm in session.arms if arm.id not in (BASELINE, CONTROL)}


def _complete(session: Session | ServingSession) -> bool:
    """Whether the same command would measure nothing more of it."""
    retried = isinstance(session, ServingSession) and any(arm.failure is not None for arm in session.arms)
    return session.finished_at is not None and not retried


def _differing(known: Session | ServingSession, now: Session | ServingSession) -> Iterator[str]:
    """The parts of a plan in which two headers differ, in words."""
    machine = [
        name for name in Machine.model_fields if getattr(known.machine, name) != getattr(now.machine, name)
    ]
    if machine:
        yield f"the machine ({', '.join(machine).replace('_', ' ')})"
    for name in type(now).model_fields:
        if name not in _NOT_PLANNED and getattr(known, name) != getattr(now, name):
            yield f"the {name.removesuffix('_sha256').replace('_', ' ')}"
    before = _drafts(known)
    for draft, arm in _drafts(now).items():
        was = before[draft]
        if was.draft is None or arm.draft is None:
            if was.draft != arm.draft:
                yield f"whether {draft} could be built"
            continue
        for name in ("recipe_sha256", "weights_sha256"):
            if getattr(was.draft, name) != getattr(arm.draft, name):
                yield f"the {name.removesuffix('_sha256')} of {draft}"
        for name in _OF_ARM:
            alike = getattr(known, name, None) == getattr(
                now, name, None
            )  # else it is told of all arms at once
            if alike and getattr(was, name, None) != getattr(arm, name, None):
                yield f"the {name.removesuffix('_sha256').replace('_', ' ')} of {draft}"
