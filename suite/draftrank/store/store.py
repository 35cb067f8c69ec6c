"""The results store: sessions and raw trials in one SQLite file, or in the database of a server.

A trial is on disk when `add_trial` returns, and no fact can be stored twice. Nothing derived is kept:
every mean on the board is computed from these records. Several processes may use one store at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from sqlalchemy import Engine, delete, insert, make_url, select
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session as Transaction

from draftrank.catalog.base import sha256_of_json
from draftrank.errors import StoreError
from draftrank.measure.evidence import Numerics
from draftrank.measure.parity import Parity
from draftrank.measure.records import Arm, Machine, Session, SessionResult, SessionTask, StoppedBy, Trial
from draftrank.store.database import create_server_engine, create_store_engine, shown, store_errors
from draftrank.store.merging import describe, in_order, join, trial_order
from draftrank.store.schema import ensure_schema, ensure_server_schema
from draftrank.store.serving import ServingSessions
from draftrank.store.sessions import Sessions, as_stored, to_record
from draftrank.store.tables import ArmRow, MachineRow, ParityRow, SessionRow, SessionTaskRow, TrialRow

_URL = "sqlite:///"


class Store(Sessions[SessionRow, Session, SessionResult]):
    """An open results store; use it as a context manager, or call `close`."""

    table = SessionRow
    kind = "session"
    measured = "trials"

    def __init__(self, name: str, engine: Engine) -> None:
        super().__init__(name, engine)
        self.serving = ServingSessions(name, engine)
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

    def finish_session(self, session_id: str, finished_at: str, stopped_by: StoppedBy | None = None) -> None:
        """Marks a session complete at a UTC time (ISO 8601), and says what ended it.

        Raises:
            StoreError: the session does not exist.
        """
        with self._writing() as transaction:
            row = self._existing(transaction, session_id)
            row.finished_at, row.stopped_by = finished_at, stopped_by

    def set_numerics(self, session_id: str, numerics: Numerics) -> None:
        """Keeps how rounding depends on the shape of a forward.

        Raises:
            StoreError: the session does not exist.
        """
        with self._writing() as transaction:
            self._existing(transaction, session_id).numerics = numerics.model_dump(mode="json")

    def add_trial(self, session_id: str, trial: Trial) -> None:
        """Stores a trial; it is on disk when this returns. An identical one is ignored.

        Raises:
            StoreError: the session, its arm or its task does not exist, or the key is taken by another
                trial.
        """
        with self._writing() as transaction:
            session = self._existing(transaction, session_id)
            _require_part_of(session, trial)
            known = _trial_row(transaction, session, trial)
            if known is None:
                transaction.add(TrialRow(session_key=session.key, **trial.model_dump(mode="json")))
            elif to_record(Trial, known) != trial:
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
            known = _trial_row(transaction, self._existing(transaction, session_id), trial)
            if known is None:
                raise StoreError(f"session {session_id} has no trial {describe(trial)} (add it first)")
            known.judgement = trial.judgement.model_dump(mode="json") if trial.judgement else None

    def join_result(self, result: SessionResult) -> None:
        """Stores a part of a session, joined with what the store has of it.

        Raises:
            StoreError: the two contradict each other, or the parts do not fit together.
        """
        with self._writing() as transaction:
            row = self._find(transaction, result.session.id)
            if row is None:
                self._insert(transaction, result.session, result.trials)
                return
            known = in_order(self._whole(transaction, row))
            joined = join(known, result)
            if joined != known:
                _remove(transaction, row)
                self._insert(transaction, joined.session, joined.trials)

    def delete_session(self, session_id: str) -> None:
        """Removes a session with its trials, and its machine when no other session ran there.

        Raises:
            StoreError: the session does not exist.
        """
        with self._writing() as transaction:
            _remove(transaction, self._existing(transaction, session_id))

    def add_parity(self, parity: Parity) -> None:
        """Stores a draft's parity with another engine; an identical one is ignored.

        Raises:
            StoreError: the id exists with other content.
        """
        with self._writing() as transaction:
            known = transaction.scalar(select(ParityRow).filter_by(id=parity.id))
            if known is None:
                transaction.add(ParityRow(**parity.model_dump(mode="json")))
            elif to_record(Parity, known) != as_stored(parity):
                raise StoreError(
                    f"parity {parity.id} exists with other content (keep the one that was measured)"
                )

    # -- reading ---------------------------------------------------------------------------------

    def trials(self, session_id: str) -> tuple[Trial, ...]:
        """A session's trials, by task, prompt, turn, repeat and place, whatever order they came in.

        Raises:
            StoreError: the session does not exist.
        """
        with self._reading() as transaction:
            return _trials(transaction, self._existing(transaction, session_id))

    def parities(self) -> tuple[Parity, ...]:
        """Every draft's parity with other engines, from the oldest to the newest."""
        with self._reading() as transaction:
            rows = transaction.scalars(select(ParityRow).order_by(ParityRow.created_at, ParityRow.id))
            return tuple(to_record(Parity, row) for row in rows)

    def _header(self, row: SessionRow) -> Session:
        return to_record(
            Session,
            row,
            machine=to_record(Machine, row.machine),
            tasks=tuple(to_record(SessionTask, task) for task in row.tasks),
            arms=tuple(to_record(Arm, arm) for arm in row.arms),
        )

    def _whole(self, transaction: Transaction, row: SessionRow) -> SessionResult:
        return SessionResult(session=self._header(row), trials=_trials(transaction, row))

    def _in_order(self, result: SessionResult) -> SessionResult:
        return in_order(result)

    def _insert(self, transaction: Transaction, session: Session, measured: Sequence[Trial]) -> None:
        machine = session.machine.model_dump(mode="json")
        sha256 = sha256_of_json(machine)
        known = transaction.scalar(select(MachineRow).where(MachineRow.sha256 == sha256))
        values = session.model_dump(mode="json")
        tasks = [SessionTaskRow(place=place, **task) for place, task in enumerate(values.pop("tasks"))]
        arms = [ArmRow(place=place, **arm) for place, arm in enumerate(values.pop("arms"))]
        values["machine"] = known or MachineRow(sha256=sha256, **machine)
        row = SessionRow(**values, tasks=tasks, arms=arms)
        transaction.add(row)
        transaction.flush()
        for trial in measured:
            _require_part_of(row, trial)
        if measured:
            rows = [{"session_key": row.key, **trial.model_dump(mode="json")} for trial in measured]
            transaction.execute(insert(TrialRow), rows)


def _trials(transaction: Transaction, row: SessionRow) -> tuple[Trial, ...]:
    found = transaction.scalars(select(TrialRow).where(TrialRow.session_key == row.key))
    return tuple(sorted((to_record(Trial, trial) for trial in found), key=trial_order))


def _trial_row(transaction: Transaction, session: SessionRow, trial: Trial) -> TrialRow | None:
    """The row of a trial's key, if there is one."""
    key = dict(zip(("arm", "task", "prompt", "turn", "repeat", "attempt"), trial.key, strict=True))
    return transaction.scalar(select(TrialRow).filter_by(session_key=session.key, **key))


def _remove(transaction: Transaction, row: SessionRow) -> None:
    """Removes a session; the database removes its tasks, arms and trials."""
    transaction.execute(delete(SessionRow).where(SessionRow.key == row.key))
    unused = ~select(SessionRow.key).where(SessionRow.machine_key == MachineRow.key).exists()
    transaction.execute(delete(MachineRow).where(unused))
    transaction.expunge_all()


def _require_part_of(session: SessionRow, trial: Trial) -> None:
    """Says in words what the foreign keys would refuse."""
    for what, name, known in (
        ("arm", trial.arm, {arm.id for arm in session.arms}),
        ("task", trial.task, {task.task for task in session.tasks}),
    ):
        if name not in known:
            raise StoreError(f"session {session.id} has no {what} {name!r} (declare it when it begins)")
