"""Serving sessions in the results store: header, arms and rounds. A round is on disk when `add_round` returns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session as Transaction
from sqlalchemy.orm import selectinload

from draftrank.errors import StoreError
from draftrank.measure.serving_records import Round, ServingArm, ServingResult, ServingSession
from draftrank.store.rows import to_record, validated
from draftrank.store.tables import RoundRow, ServingArmRow, ServingSessionRow

Opening = Callable[[], AbstractContextManager[Transaction]]


class ServingSessions:
    """The part of a store that holds serving sessions."""

    def __init__(self, writing: Opening, reading: Opening) -> None:
        self._writing, self._reading = writing, reading

    # -- writing ---------------------------------------------------------------------------------

    def begin(self, session: ServingSession) -> None:
        """Stores a new session with its arms.

        Raises:
            StoreError: the id exists.
        """
        with self._writing() as transaction:
            if _find(transaction, session.id) is not None:
                raise StoreError(f"serving session {session.id} exists already (take another id)")
            transaction.add(_session_row(session))

    def update_arm(self, session_id: str, arm: ServingArm) -> None:
        """Replaces what is known of an arm.

        Raises:
            StoreError: the session or the arm does not exist.
        """
        with self._writing() as transaction:
            row = _arm_row(_existing(transaction, session_id), arm.id)
            for name, value in arm.model_dump(mode="json").items():
                setattr(row, name, value)

    def add_warnings(self, session_id: str, warnings: tuple[str, ...]) -> None:
        """Appends warnings that the session does not have yet; raises as `finish`."""
        with self._writing() as transaction:
            row = _existing(transaction, session_id)
            row.warnings = list(dict.fromkeys((*row.warnings, *warnings)))

    def add_round(self, session_id: str, one: Round) -> None:
        """Stores a round; an identical one is ignored.

        Raises:
            StoreError: the session or its arm does not exist, or another round has the key.
        """
        with self._writing() as transaction:
            session = _existing(transaction, session_id)
            _arm_row(session, one.arm)
            known = _round_row(transaction, session, one)
            if known is None:
                transaction.add(_new_round(session, one))
            elif to_record(Round, known) != _as_stored(one):
                raise StoreError(
                    f"serving session {session_id} holds another round {_named(one)} (measure it in a new session)"
                )

    def judge_round(self, session_id: str, one: Round) -> None:
        """Replaces the requests of a round that is stored, once its divergences are judged.

        Raises:
            StoreError: the session or the round does not exist.
        """
        with self._writing() as transaction:
            known = _round_row(transaction, _existing(transaction, session_id), one)
            if known is None:
                raise StoreError(f"serving session {session_id} has no round {_named(one)} (add it first)")
            known.requests = one.model_dump(mode="json")["requests"]

    def finish(self, session_id: str, finished_at: str) -> None:
        """Marks a session complete at a UTC time (ISO 8601).

        Raises:
            StoreError: the session does not exist.
        """
        with self._writing() as transaction:
            _existing(transaction, session_id).finished_at = finished_at

    def add(self, result: ServingResult) -> None:
        """Stores a whole session; an identical one is ignored.

        Raises:
            StoreError: the id exists with other content, or a round is of no arm of the session.
        """
        with self._writing() as transaction:
            row = _find(transaction, result.session.id)
            if row is not None:
                if in_order(_result(transaction, row)) != in_order(_as_stored(result)):
                    raise StoreError(
                        f"serving session {result.session.id} exists with other content (keep the one that was measured)"
                    )
                return
            row = _session_row(result.session)
            transaction.add(row)
            transaction.flush()
            for one in result.rounds:
                _arm_row(row, one.arm)
                transaction.add(_new_round(row, one))

    # -- reading ---------------------------------------------------------------------------------

    def find(self, plan_sha256: str) -> ServingSession | None:
        """The newest session of a plan, complete or not."""
        with self._reading() as transaction:
            rows = _rows(transaction, ServingSessionRow.plan_sha256 == plan_sha256)
            return _session(rows[-1]) if rows else None

    def sessions(self) -> tuple[ServingSession, ...]:
        """All sessions without their rounds, from the oldest to the newest."""
        with self._reading() as transaction:
            return tuple(map(_session, _rows(transaction)))

    def result(self, session_id: str) -> ServingResult:
        """A session with its rounds.

        Raises:
            StoreError: it does not exist.
        """
        with self._reading() as transaction:
            return _result(transaction, _existing(transaction, session_id))

    def results(self, target: str | None = None) -> tuple[ServingResult, ...]:
        """All sessions with their rounds, or those of one target, from the oldest to the newest."""
        conditions = () if target is None else (ServingSessionRow.target == target,)
        with self._reading() as transaction:
            return tuple(_result(transaction, row) for row in _rows(transaction, *conditions))


def in_order(result: ServingResult) -> ServingResult:
    """The same result with its rounds by concurrency, block, attempt and place."""
    rounds = sorted(
        result.rounds, key=lambda one: (one.concurrency, one.index, one.attempt, one.position, one.arm)
    )
    return result.model_copy(update={"rounds": tuple(rounds)})


def _as_stored(record: Any) -> Any:
    """A record as it comes back: JSON has lists and no tuples."""
    return type(record).model_validate_json(record.model_dump_json())


def _rows(transaction: Transaction, *conditions: ColumnElement[bool]) -> list[ServingSessionRow]:
    query = (
        select(ServingSessionRow)
        .where(*conditions)
        .order_by(ServingSessionRow.created_at, ServingSessionRow.id)
        .options(selectinload(ServingSessionRow.arms))
    )
    return list(transaction.scalars(query))


def _find(transaction: Transaction, session_id: str) -> ServingSessionRow | None:
    return next(iter(_rows(transaction, ServingSessionRow.id == session_id)), None)


def _existing(transaction: Transaction, session_id: str) -> ServingSessionRow:
    row = _find(transaction, session_id)
    if row is None:
        raise StoreError(f"there is no serving session {session_id} in the store (list those there are)")
    return row


def _arm_row(session: ServingSessionRow, arm: str) -> ServingArmRow:
    for row in session.arms:
        if row.id == arm:
            return row
    raise StoreError(f"serving session {session.id} has no arm {arm!r} (declare it when it begins)")


def _round_row(transaction: Transaction, session: ServingSessionRow, one: Round) -> RoundRow | None:
    return transaction.scalar(
        select(RoundRow).filter_by(
            session_key=session.key,
            arm=one.arm,
            concurrency=one.concurrency,
            index=one.index,
            attempt=one.attempt,
        )
    )


def _session_row(session: ServingSession) -> ServingSessionRow:
    arms = [
        ServingArmRow(place=place, **arm.model_dump(mode="json")) for place, arm in enumerate(session.arms)
    ]
    return ServingSessionRow(**session.model_dump(mode="json", exclude={"arms"}), arms=arms)


def _new_round(session: ServingSessionRow, one: Round) -> RoundRow:
    return RoundRow(session_key=session.key, **one.model_dump(mode="json"))


def _session(row: ServingSessionRow) -> ServingSession:
    values = {name: getattr(row, name) for name in ServingSession.model_fields if name != "arms"}
    arms = tuple(to_record(ServingArm, arm) for arm in row.arms)
    return validated(ServingSession, {**values, "arms": arms})


def _result(transaction: Transaction, row: ServingSessionRow) -> ServingResult:
    rounds = transaction.scalars(select(RoundRow).where(RoundRow.session_key == row.key))
    return in_order(
        ServingResult(session=_session(row), rounds=tuple(to_record(Round, one) for one in rounds))
    )


def _named(one: Round) -> str:
    return f"{one.arm} at concurrency {one.concurrency}, block {one.index}"
