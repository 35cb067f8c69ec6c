"""Serving sessions in the results store: header, arms and rounds. A round is on disk when `add_round` returns."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session as Transaction

from draftrank.errors import StoreError
from draftrank.measure.serving_records import Round, ServingArm, ServingResult, ServingSession
from draftrank.store.merging import rounds_in_order
from draftrank.store.sessions import Sessions, as_stored, to_record
from draftrank.store.tables import RoundRow, ServingArmRow, ServingSessionRow


class ServingSessions(Sessions[ServingSessionRow, ServingSession, ServingResult]):
    """The part of a store that holds serving sessions."""

    table = ServingSessionRow
    kind = "serving session"
    measured = "rounds"

    # -- writing ---------------------------------------------------------------------------------

    def add_round(self, session_id: str, one: Round) -> None:
        """Stores a round; an identical one is ignored.

        Raises:
            StoreError: the session or its arm does not exist, or another round has the key.
        """
        with self._writing() as transaction:
            session = self._existing(transaction, session_id)
            self._arm(session, one.arm)
            known = _round_row(transaction, session, one)
            if known is None:
                transaction.add(_new_round(session, one))
            elif to_record(Round, known) != as_stored(one):
                raise StoreError(
                    f"serving session {session_id} holds another round {_named(one)} (measure it in a new session)"
                )

    def judge_round(self, session_id: str, one: Round) -> None:
        """Replaces the requests of a round that is stored, once its divergences are judged.

        Raises:
            StoreError: the session or the round does not exist.
        """
        with self._writing() as transaction:
            known = _round_row(transaction, self._existing(transaction, session_id), one)
            if known is None:
                raise StoreError(f"serving session {session_id} has no round {_named(one)} (add it first)")
            known.requests = one.model_dump(mode="json")["requests"]

    def finish_session(self, session_id: str, finished_at: str) -> None:
        """Marks a session complete at a UTC time (ISO 8601).

        Raises:
            StoreError: the session does not exist.
        """
        with self._writing() as transaction:
            self._existing(transaction, session_id).finished_at = finished_at

    def reopen_session(self, session_id: str) -> None:
        """Marks a session as incomplete, because more is measured.

        Raises:
            StoreError: the session does not exist.
        """
        with self._writing() as transaction:
            self._existing(transaction, session_id).finished_at = None

    # -- reading ---------------------------------------------------------------------------------

    def _header(self, row: ServingSessionRow) -> ServingSession:
        arms = tuple(to_record(ServingArm, arm) for arm in row.arms)
        return to_record(ServingSession, row, arms=arms)

    def _whole(self, transaction: Transaction, row: ServingSessionRow) -> ServingResult:
        found = transaction.scalars(select(RoundRow).where(RoundRow.session_key == row.key))
        rounds = tuple(to_record(Round, one) for one in found)
        return rounds_in_order(ServingResult(session=self._header(row), rounds=rounds))

    def _in_order(self, result: ServingResult) -> ServingResult:
        return rounds_in_order(result)

    def _insert(self, transaction: Transaction, session: ServingSession, measured: Sequence[Round]) -> None:
        arms = [
            ServingArmRow(place=place, **arm.model_dump(mode="json"))
            for place, arm in enumerate(session.arms)
        ]
        row = ServingSessionRow(**session.model_dump(mode="json", exclude={"arms"}), arms=arms)
        transaction.add(row)
        transaction.flush()
        for one in measured:
            self._arm(row, one.arm)
            transaction.add(_new_round(row, one))


def _round_row(transaction: Transaction, session: ServingSessionRow, one: Round) -> RoundRow | None:
    key = {"arm": one.arm, "concurrency": one.concurrency, "index": one.index, "attempt": one.attempt}
    return transaction.scalar(select(RoundRow).filter_by(session_key=session.key, **key))


def _new_round(session: ServingSessionRow, one: Round) -> RoundRow:
    return RoundRow(session_key=session.key, **one.model_dump(mode="json"))


def _named(one: Round) -> str:
    return f"{one.arm} at concurrency {one.concurrency}, block {one.index}"
