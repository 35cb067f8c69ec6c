"""Records to rows and back, without loss.

Columns are named like fields, so the code here only tells which fields are columns of a session's
own row and which lie in other tables.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError
from sqlalchemy.orm import DeclarativeBase

from draftrank.catalog.base import sha256_of_json
from draftrank.errors import StoreError
from draftrank.measure.parity import Parity
from draftrank.measure.record import Record
from draftrank.measure.records import Arm, Machine, Session, SessionTask, Trial
from draftrank.store.tables import ArmRow, MachineRow, ParityRow, SessionRow, SessionTaskRow, TrialRow

R = TypeVar("R", bound=Record)

_ELSEWHERE = {"machine", "tasks", "arms"}


def machine_row(machine: Machine) -> MachineRow:
    """A machine's row; equal machines have equal hashes."""
    values = machine.model_dump(mode="json")
    return MachineRow(sha256=sha256_of_json(values), **values)


def session_row(session: Session, machine: MachineRow) -> SessionRow:
    """A session's row with those of its tasks and arms."""
    return SessionRow(
        **session.model_dump(mode="json", exclude=_ELSEWHERE),
        machine=machine,
        tasks=[
            SessionTaskRow(place=place, **task.model_dump(mode="json"))
            for place, task in enumerate(session.tasks)
        ],
        arms=[ArmRow(place=place, **arm_values(arm)) for place, arm in enumerate(session.arms)],
    )


def arm_values(arm: Arm) -> dict[str, Any]:
    """Values of an arm's own columns."""
    return arm.model_dump(mode="json")


def trial_values(trial: Trial, session_key: int) -> dict[str, Any]:
    """Values of a trial's columns."""
    return {"session_key": session_key, **trial.model_dump(mode="json")}


def to_session(row: SessionRow) -> Session:
    """The record of a session's row.

    Raises:
        StoreError: a row holds what its record refuses, i.e. the file was changed by other means.
    """
    values = {name: getattr(row, name) for name in Session.model_fields if name not in _ELSEWHERE}
    values["machine"] = to_record(Machine, row.machine)
    values["tasks"] = tuple(to_record(SessionTask, task) for task in row.tasks)
    values["arms"] = tuple(to_record(Arm, arm) for arm in row.arms)
    return validated(Session, values)


def to_trial(row: TrialRow) -> Trial:
    """The record of a trial's row; raises as `to_session`."""
    return to_record(Trial, row)


def to_parity(row: ParityRow) -> Parity:
    """The record of a parity's row; raises as `to_session`."""
    return to_record(Parity, row)


def to_record(model: type[R], row: DeclarativeBase) -> R:
    """The record whose fields are the columns of a row; raises as `to_session`."""
    return validated(model, {name: getattr(row, name) for name in model.model_fields})


def validated(model: type[R], values: dict[str, Any]) -> R:
    """The record of these values; raises as `to_session`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise StoreError(
            f"the store holds a damaged {model.__name__.lower()}: {error} (restore a backup of the file)"
        ) from error
