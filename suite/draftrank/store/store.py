"""The results store: sessions and raw trials in one SQLite file, or in the database of a server.

A trial is on disk when `add_trial` returns, and no fact can be stored twice. Nothing derived is kept:
every mean on the board is computed from these records. Several processes may use one store at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from sqlalchemy import Engine, insert, make_url, select, update
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session as Transaction

from draftrank.errors import StoreError
from draftrank.measure.evidence import Numerics
from draftrank.measure.parity import Parity
from draftrank.measure.records import Arm, Session, SessionResult, StoppedBy, Trial
from draftrank.store.database import create_server_engine, create_store_engine, shown, store_errors, writing
from draftrank.store.merging import describe, in_order, join
from draftrank.store.queries import (
    existing_session_row,
    find_session_row,
    insert_session,
    of_target,
    read_result,
    read_trials,
    remove_session,
    require_part_of,
    session_rows,
    trial_row,
)
from draftrank.store.rows import arm_values, to_parity, to_session, to_trial, trial_values
from draftrank.store.schema import ensure_schema, ensure_server_schema
from draftrank.store.serving import ServingSessions
from draftrank.store.tables import ArmRow, ParityRow, SessionRow, TrialRow

_URL = "sqlite:///"


class Store:
    """An open results store; use it as a context manager, or call `close`."""

    def __init__(self, name: str, engine: Engine) -> None:
        self.name = name
        """Its path or address, without a password."""
        self._engine = engine
        self.serving = ServingSessions(self._writing, self._reading)
        """Serving sessions."""

    @classmethod
    def open(cls, url_or_path: str | Path) -> Store:
        """Opens the store at a path, a `sqlite:///path` address or the SQLAlchemy address of a database server;
        creates or migrates it as needed.

        Raises:
            StoreError: it is no store, comes from a newer draftrank, or cannot be reached or written.
        """
        text = str(url_or_path).removeprefix(_URL)
        if text in ("", ":memory:") or (text.startswith("sqlite") and "://" in text):
            raise StoreError(
                f"{url_or_path}: the store is an SQLite file (name it by a path or {_URL}<path>)"
            )
        if "://" in text:
            return cls._open_server(text)
        path = Path(text)
        with store_errors(text):
            ensure_schema(path)
        return cls(text, create_store_engine(path))

    @classmethod
    def _open_server(cls, address: str) -> Store:
        try:
            url = make_url(address)
        except ArgumentError as error:
            raise StoreError(
                "the store's address is none (write postgresql://user:password@host/database, or a path)"
            ) from error
        engine = create_server_engine(url)
        try:
            with store_errors(shown(url)):
                ensure_server_schema(engine, shown(url))
        except StoreError:
            engine.dispose()
            raise
        return cls(shown(url), engine)

    def close(self) -> None:
        """Closes the file or the connections."""
        self._engine.dispose()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- writing ---------------------------------------------------------------------------------

    def begin_session(self, session: Session) -> None:
        """Stores a new session with its arms and tasks.

        Raises:
            StoreError: the id exists.
        """
        with self._writing() as transaction:
            if find_session_row(transaction, session.id) is not None:
                raise StoreError(f"session {session.id} exists already (go on with it, or take another id)")
            insert_session(transaction, session, ())

    def update_arm(self, session_id: str, arm: Arm) -> None:
        """Replaces what is known of an arm, e.g. once its draft is built or has failed.

        Raises:
            StoreError: the session or the arm does not exist.
        """
        with self._writing() as transaction:
            row = existing_session_row(transaction, session_id)
            known = [entry for entry in row.arms if entry.id == arm.id]
            if not known:
                raise StoreError(f"session {session_id} has no arm {arm.id!r} (declare it when it begins)")
            transaction.execute(update(ArmRow).where(ArmRow.key == known[0].key).values(**arm_values(arm)))

    def add_warnings(self, session_id: str, warnings: Iterable[str]) -> None:
        """Appends warnings that the session does not have yet.

        Raises:
            StoreError: the session does not exist.
        """
        with self._writing() as transaction:
            row = existing_session_row(transaction, session_id)
            row.warnings = list(dict.fromkeys((*row.warnings, *warnings)))

    def finish_session(self, session_id: str, finished_at: str, stopped_by: StoppedBy | None = None) -> None:
        """Marks a session complete at a UTC time (ISO 8601), and says what ended it.

        Raises:
            StoreError: the session does not exist.
        """
        with self._writing() as transaction:
            row = existing_session_row(transaction, session_id)
            row.finished_at, row.stopped_by = finished_at, stopped_by

    def set_numerics(self, session_id: str, numerics: Numerics) -> None:
        """Keeps how rounding depends on the shape of a forward.

        Raises:
            StoreError: the session does not exist.
        """
        with self._writing() as transaction:
            existing_session_row(transaction, session_id).numerics = numerics.model_dump(mode="json")

    def add_trial(self, session_id: str, trial: Trial) -> None:
        """Stores a trial; it is on disk when this returns. An identical one is ignored.

        Raises:
            StoreError: the session, its arm or its task does not exist, or the key is taken by another
                trial.
        """
        with self._writing() as transaction:
            session = existing_session_row(transaction, session_id)
            require_part_of(session, trial)
            known = trial_row(transaction, session, trial)
            if known is None:
                transaction.execute(insert(TrialRow).values(**trial_values(trial, session.key)))
            elif to_trial(known) != trial:
                raise StoreError(
                    f"session {session_id} holds another trial {describe(trial)} "
                    "(measure it in a new session)"
                )

    def judge_trial(self, session_id: str, trial: Trial) -> None:
        """Keeps the judgement of a trial that is stored already.

        Raises:
            StoreError: the session or the trial does not exist.
        """
        with self._writing() as transaction:
            known = trial_row(transaction, existing_session_row(transaction, session_id), trial)
            if known is None:
                raise StoreError(f"session {session_id} has no trial {describe(trial)} (add it first)")
            judgement = trial.judgement
            known.judgement = judgement.model_dump(mode="json") if judgement else None

    def add_result(self, result: SessionResult) -> None:
        """Stores a whole session; an identical one is ignored.

        Raises:
            StoreError: the id exists with other content, or the parts do not fit together.
        """
        with self._writing() as transaction:
            row = find_session_row(transaction, result.session.id)
            if row is None:
                insert_session(transaction, result.session, result.trials)
            elif in_order(read_result(transaction, row)) != in_order(result):
                raise StoreError(
                    f"session {result.session.id} exists with other content (delete it first to replace it)"
                )

    def join_result(self, result: SessionResult) -> None:
        """Stores a part of a session, joined with what the store has of it.

        Raises:
            StoreError: the two contradict each other, or the parts do not fit together.
        """
        with self._writing() as transaction:
            row = find_session_row(transaction, result.session.id)
            if row is None:
                insert_session(transaction, result.session, result.trials)
                return
            known = in_order(read_result(transaction, row))
            joined = join(known, result)
            if joined != known:
                remove_session(transaction, row)
                insert_session(transaction, joined.session, joined.trials)

    def delete_session(self, session_id: str) -> None:
        """Removes a session with its trials, and its machine when no other session ran there.

        Raises:
            StoreError: the session does not exist.
        """
        with self._writing() as transaction:
            remove_session(transaction, existing_session_row(transaction, session_id))

    def add_parity(self, parity: Parity) -> None:
        """Stores a draft's parity with another engine; an identical one is ignored.

        Raises:
            StoreError: the id exists with other content.
        """
        with self._writing() as transaction:
            known = transaction.scalar(select(ParityRow).filter_by(id=parity.id))
            if known is None:
                transaction.add(ParityRow(**parity.model_dump(mode="json")))
            elif to_parity(known) != Parity.model_validate(parity.model_dump(mode="json")):
                raise StoreError(
                    f"parity {parity.id} exists with other content (keep the one that was measured)"
                )

    # -- reading ---------------------------------------------------------------------------------

    def find_session(self, plan_sha256: str) -> Session | None:
        """The newest session of a plan, complete or not."""
        with self._reading() as transaction:
            rows = session_rows(transaction, SessionRow.plan_sha256 == plan_sha256)
            return to_session(rows[-1]) if rows else None

    def sessions(self, target: str | None = None) -> tuple[Session, ...]:
        """All sessions, or those of one target, from the oldest to the newest."""
        with self._reading() as transaction:
            return tuple(to_session(row) for row in session_rows(transaction, *of_target(target)))

    def trials(self, session_id: str) -> tuple[Trial, ...]:
        """A session's trials, by task, prompt, turn, repeat and place, whatever order they came in.

        Raises:
            StoreError: the session does not exist.
        """
        with self._reading() as transaction:
            return read_trials(transaction, existing_session_row(transaction, session_id))

    def result(self, session_id: str) -> SessionResult:
        """A session with its trials, as they were at one moment; raises as `trials`."""
        with self._reading() as transaction:
            return read_result(transaction, existing_session_row(transaction, session_id))

    def results(self, target: str | None = None) -> tuple[SessionResult, ...]:
        """All sessions with their trials, or those of one target, from the oldest to the newest."""
        with self._reading() as transaction:
            return tuple(
                read_result(transaction, row) for row in session_rows(transaction, *of_target(target))
            )

    def parities(self) -> tuple[Parity, ...]:
        """Every draft's parity with other engines, from the oldest to the newest."""
        with self._reading() as transaction:
            rows = transaction.scalars(select(ParityRow).order_by(ParityRow.created_at, ParityRow.id))
            return tuple(map(to_parity, rows))

    @contextmanager
    def _writing(self) -> Iterator[Transaction]:
        with store_errors(self.name), Transaction(writing(self._engine)) as transaction, transaction.begin():
            yield transaction

    @contextmanager
    def _reading(self) -> Iterator[Transaction]:
        with store_errors(self.name), Transaction(self._engine) as transaction, transaction.begin():
            yield transaction
