"""What a store does alike with sessions and with serving sessions, and rows as records without loss.

Columns are named like fields, so the code here only tells which fields lie in tables of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from sqlalchemy import ColumnElement, Engine, select
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.orm import Session as Transaction

from draftrank.errors import StoreError
from draftrank.measure.evidence import Record
from draftrank.measure.records import Arm, SessionHeader, SessionResult
from draftrank.measure.serving_records import ServingArm, ServingResult
from draftrank.store.database import store_errors, writing
from draftrank.store.tables import ArmRow, ServingArmRow, ServingSessionRow, SessionRow

R = TypeVar("R", bound=Record)
Row = TypeVar("Row", SessionRow, ServingSessionRow)
Header = TypeVar("Header", bound=SessionHeader)
Whole = TypeVar("Whole", SessionResult, ServingResult)


class Sessions(ABC, Generic[Row, Header, Whole]):
    """The sessions of one kind in a store; a header is a session's record, a whole one has what was measured, too."""

    table: type[Row]
    kind: str
    """What such a session is called."""
    measured: str
    """The field of a whole session with what was measured."""

    def __init__(self, name: str, engine: Engine) -> None:
        self.name = name
        """Path or address of the store, without a password."""
        self._engine = engine

    @abstractmethod
    def _header(self, row: Row) -> Header: ...

    @abstractmethod
    def _whole(self, transaction: Transaction, row: Row) -> Whole: ...

    @abstractmethod
    def _in_order(self, result: Whole) -> Whole: ...

    @abstractmethod
    def _insert(self, transaction: Transaction, session: Header, measured: Sequence[Any]) -> None:
        """Adds a session that is not stored yet; raises StoreError where what was measured does not fit it."""

    # -- writing ---------------------------------------------------------------------------------

    def begin_session(self, session: Header) -> None:
        """Stores a new session of which nothing is measured yet.

        Raises:
            StoreError: the id exists.
        """
        with self._writing() as transaction:
            if self._find(transaction, session.id) is not None:
                raise StoreError(
                    f"{self.kind} {session.id} exists already (go on with it, or take another id)"
                )
            self._insert(transaction, session, ())

    def add_result(self, result: Whole) -> None:
        """Stores a whole session; an identical one is ignored.

        Raises:
            StoreError: the id exists with other content, or the parts do not fit together.
        """
        with self._writing() as transaction:
            session: Any = result.session  # a Header, which its type does not say
            row = self._find(transaction, session.id)
            if row is None:
                self._insert(transaction, session, getattr(result, self.measured))
            elif self._in_order(self._whole(transaction, row)) != self._in_order(as_stored(result)):
                raise StoreError(
                    f"{self.kind} {session.id} exists with other content (keep the one that was measured, or remove it first)"
                )

    def update_arm(self, session_id: str, arm: Arm | ServingArm) -> None:
        """Replaces what is known of an arm, e.g. once its draft is built or has failed.

        Raises:
            StoreError: the session or the arm does not exist.
        """
        with self._writing() as transaction:
            row = self._arm(self._existing(transaction, session_id), arm.id)
            for name, value in arm.model_dump(mode="json").items():
                setattr(row, name, value)

    def add_warnings(self, session_id: str, warnings: Iterable[str]) -> None:
        """Appends warnings that the session does not have yet.

        Raises:
            StoreError: the session does not exist.
        """
        with self._writing() as transaction:
            row: Row = self._existing(transaction, session_id)
            row.warnings = list(dict.fromkeys((*row.warnings, *warnings)))

    # -- reading ---------------------------------------------------------------------------------

    def sessions(self) -> tuple[Header, ...]:
        """All sessions, from the oldest to the newest."""
        with self._reading() as transaction:
            return tuple(map(self._header, self._rows(transaction)))

    def result(self, session_id: str) -> Whole:
        """A session with what was measured, as it was at one moment.

        Raises:
            StoreError: the session does not exist.
        """
        with self._reading() as transaction:
            return self._whole(transaction, self._existing(transaction, session_id))

    def results(self) -> tuple[Whole, ...]:
        """All sessions with what was measured, from the oldest to the newest."""
        with self._reading() as transaction:
            return tuple(self._whole(transaction, row) for row in self._rows(transaction))

    def find_session(self, plan_sha256: str) -> Header | None:
        """The newest session of a plan, complete or not."""
        with self._reading() as transaction:
            rows = self._rows(transaction, self.table.plan_sha256 == plan_sha256)
            return self._header(rows[-1]) if rows else None

    # -- within a transaction --------------------------------------------------------------------

    def _rows(self, transaction: Transaction, *conditions: ColumnElement[bool]) -> list[Row]:
        """The sessions that meet all conditions, from the oldest to the newest."""
        query = select(self.table).where(*conditions).order_by(self.table.created_at, self.table.id)
        return list(transaction.scalars(query))

    def _find(self, transaction: Transaction, session_id: str) -> Row | None:
        return next(iter(self._rows(transaction, self.table.id == session_id)), None)

    def _existing(self, transaction: Transaction, session_id: str) -> Row:
        row = self._find(transaction, session_id)
        if row is None:
            raise StoreError(f"there is no {self.kind} {session_id} in the store (list those there are)")
        return row

    def _arm(self, session: Row, arm_id: str) -> ArmRow | ServingArmRow:
        for row in session.arms:
            if row.id == arm_id:
                return row
        raise StoreError(f"{self.kind} {session.id} has no arm {arm_id!r} (declare it when it begins)")

    @contextmanager
    def _writing(self) -> Iterator[Transaction]:
        with store_errors(self.name), Transaction(writing(self._engine)) as transaction, transaction.begin():
            yield transaction

    @contextmanager
    def _reading(self) -> Iterator[Transaction]:
        with store_errors(self.name), Transaction(self._engine) as transaction, transaction.begin():
            yield transaction


def to_record(model: type[R], row: DeclarativeBase, **others: Any) -> R:
    """The record whose fields are the columns of a row, but for the others.

    Raises:
        StoreError: the row holds what its record refuses, i.e. the file was changed by other means.
    """
    values = {name: getattr(row, name) for name in model.model_fields if name not in others}
    try:
        return model.model_validate(values | others)
    except ValidationError as error:
        raise StoreError(
            f"the store holds a damaged {model.__name__.lower()}: {error} (restore a backup of the file)"
        ) from error


def as_stored(record: R) -> R:
    """A record as it comes back from JSON, which has lists and no tuples."""
    return type(record).model_validate(record.model_dump(mode="json"))
