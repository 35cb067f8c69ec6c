"""What the store asks of its tables, within a transaction that its caller holds."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, delete, insert, select
from sqlalchemy.orm import Session as Transaction
from sqlalchemy.orm import joinedload, selectinload

from draftrank.errors import StoreError
from draftrank.measure.records import Session, SessionResult, Trial
from draftrank.store.merging import trial_order
from draftrank.store.rows import machine_row, session_row, to_session, to_trial, trial_values
from draftrank.store.tables import MachineRow, SessionRow, TrialRow


def of_target(target: str | None) -> tuple[ColumnElement[bool], ...]:
    """The condition that a session is of this target; none for None."""
    return () if target is None else (SessionRow.target == target,)


def session_rows(transaction: Transaction, *conditions: ColumnElement[bool]) -> list[SessionRow]:
    """The sessions that meet all conditions, from the oldest to the newest."""
    query = (
        select(SessionRow)
        .where(*conditions)
        .order_by(SessionRow.created_at, SessionRow.id)
        .options(
            joinedload(SessionRow.machine), selectinload(SessionRow.tasks), selectinload(SessionRow.arms)
        )
    )
    return list(transaction.scalars(query))


def find_session_row(transaction: Transaction, session_id: str) -> SessionRow | None:
    """The session of this id, if there is one."""
    return next(iter(session_rows(transaction, SessionRow.id == session_id)), None)


def existing_session_row(transaction: Transaction, session_id: str) -> SessionRow:
    """The session of this id.

    Raises:
        StoreError: there is none.
    """
    row = find_session_row(transaction, session_id)
    if row is None:
        raise StoreError(f"there is no session {session_id} in the store (list those there are)")
    return row


def read_trials(transaction: Transaction, row: SessionRow) -> tuple[Trial, ...]:
    """A session's trials in their canonical order."""
    found = transaction.scalars(select(TrialRow).where(TrialRow.session_key == row.key))
    return tuple(sorted(map(to_trial, found), key=trial_order))


def trial_row(transaction: Transaction, session: SessionRow, trial: Trial) -> TrialRow | None:
    """The row of a trial's key, if there is one."""
    arm, task, prompt, turn, repeat, attempt = trial.key
    return transaction.scalar(
        select(TrialRow).filter_by(
            session_key=session.key,
            arm=arm,
            task=task,
            prompt=prompt,
            turn=turn,
            repeat=repeat,
            attempt=attempt,
        )
    )


def read_result(transaction: Transaction, row: SessionRow) -> SessionResult:
    """A session with its trials."""
    return SessionResult(session=to_session(row), trials=read_trials(transaction, row))


def insert_session(transaction: Transaction, session: Session, trials: Sequence[Trial]) -> None:
    """Adds a session that is not stored yet, with its trials.

    Raises:
        StoreError: a trial names an arm or a task that the session does not have.
    """
    machine = machine_row(session.machine)
    known = transaction.scalar(select(MachineRow).where(MachineRow.sha256 == machine.sha256))
    row = session_row(session, known or machine)
    transaction.add(row)
    transaction.flush()
    for trial in trials:
        require_part_of(row, trial)
    values = [trial_values(trial, row.key) for trial in trials]
    if values:
        transaction.execute(insert(TrialRow), values)


def remove_session(transaction: Transaction, row: SessionRow) -> None:
    """Removes a session; the database removes its tasks, arms and trials."""
    transaction.execute(delete(SessionRow).where(SessionRow.key == row.key))
    unused = ~select(SessionRow.key).where(SessionRow.machine_key == MachineRow.key).exists()
    transaction.execute(delete(MachineRow).where(unused))
    transaction.expunge_all()


def require_part_of(session: SessionRow, trial: Trial) -> None:
    """Says in words what the foreign keys would refuse."""
    for what, name, known in (
        ("arm", trial.arm, {arm.id for arm in session.arms}),
        ("task", trial.task, {task.task for task in session.tasks}),
    ):
        if name not in known:
            raise StoreError(f"session {session.id} has no {what} {name!r} (declare it when it begins)")
