"""The tables of the results store: the fields of `measure/records.py`, `measure/parity.py` and `measure/serving_records.py`,
one column each.

A column has the name of the record's field; nested values are JSON. Nothing derived is kept. Short
integer keys tie the tables together, and natural constraints see to it that no fact is stored twice.
A new field of a record needs a migration in `migrations/versions/`; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Collection
from types import NoneType
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from sqlalchemy import (
    JSON,
    BigInteger,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedColumn, mapped_column, relationship
from sqlalchemy.types import Boolean, TypeEngine

from draftrank.measure.evidence import Record
from draftrank.measure.parity import Parity
from draftrank.measure.records import Arm, Machine, Session, SessionTask, Trial
from draftrank.measure.serving_records import Round, ServingArm, ServingSession

WHOLE = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite's integers have 64 bits, and only by this name do they count up by themselves."""
JSON_OR_NULL = JSON(none_as_null=True)
SESSION_KEY = "sessions.key"
_TYPES: dict[Any, TypeEngine[Any]] = {str: String(), int: WHOLE, float: Double(), bool: Boolean()}


class Base(DeclarativeBase):
    """Root of all tables; constraints have names so that migrations can address them."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {float: Double(), int: WHOLE}
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )

    def __init_subclass__(
        cls, *, record: type[Record] | None = None, without: Collection[str] = (), **others: Any
    ) -> None:
        """Gives a table a column for each field of its record, but for those that it declares itself and those
        `without`, which lie in other tables."""
        for name, field in (record.model_fields if record else {}).items():
            if name not in without and name not in cls.__annotations__:
                setattr(cls, name, _column(field.annotation))
        super().__init_subclass__(**others)


def _column(annotation: Any) -> MappedColumn[Any]:
    """A column for a field of this type."""
    options = [one for one in get_args(annotation) if one is not NoneType]
    nullable = NoneType in get_args(annotation)
    kind = options[0] if nullable and len(options) == 1 else annotation
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        kind = str
    plain = _TYPES.get(kind) if isinstance(kind, type) else None
    return mapped_column(plain or (JSON_OR_NULL if nullable else JSON()), nullable=nullable)


class MachineRow(Base, record=Machine):
    """A machine, once however many sessions ran on it."""

    __tablename__ = "machines"

    key: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(unique=True)
    """Hash of all other fields: what makes a machine the same."""


class SessionRow(Base, record=Session, without=("machine", "tasks", "arms")):
    """The header of a session."""

    __tablename__ = "sessions"
    __table_args__ = (Index(None, "plan_sha256", "created_at"), Index(None, "target", "created_at"))

    key: Mapped[int] = mapped_column(primary_key=True)
    machine_key: Mapped[int] = mapped_column(ForeignKey("machines.key"), index=True)
    id: Mapped[str] = mapped_column(unique=True)
    plan_sha256: Mapped[str]
    created_at: Mapped[str]
    finished_at: Mapped[str | None]
    target: Mapped[str]
    warnings: Mapped[list[str]] = mapped_column(JSON)
    stopped_by: Mapped[str | None]
    numerics: Mapped[dict[str, Any] | None] = mapped_column(JSON_OR_NULL)

    machine: Mapped[MachineRow] = relationship(lazy="joined")
    tasks: Mapped[list[SessionTaskRow]] = relationship(lazy="selectin", order_by="SessionTaskRow.place")
    arms: Mapped[list[ArmRow]] = relationship(lazy="selectin", order_by="ArmRow.place")


class SessionTaskRow(Base, record=SessionTask):
    """A task of a session."""

    __tablename__ = "session_tasks"
    __table_args__ = (UniqueConstraint("session_key", "task"),)

    key: Mapped[int] = mapped_column(primary_key=True)
    session_key: Mapped[int] = mapped_column(ForeignKey(SESSION_KEY, ondelete="CASCADE"))
    place: Mapped[int]
    """Index among the session's tasks."""
    task: Mapped[str]


class ArmRow(Base, record=Arm):
    """An arm of a session."""

    __tablename__ = "arms"
    __table_args__ = (UniqueConstraint("session_key", "id"),)

    key: Mapped[int] = mapped_column(primary_key=True)
    session_key: Mapped[int] = mapped_column(ForeignKey(SESSION_KEY, ondelete="CASCADE"))
    place: Mapped[int]
    """Index among the session's arms."""
    id: Mapped[str]


class TrialRow(Base, record=Trial):
    """A trial; its arm and task must be those of its session."""

    __tablename__ = "trials"
    __table_args__ = (
        UniqueConstraint("session_key", "arm", "task", "prompt", "turn", "repeat", "attempt"),
        ForeignKeyConstraint(["session_key", "arm"], ["arms.session_key", "arms.id"], ondelete="CASCADE"),
        ForeignKeyConstraint(
            ["session_key", "task"],
            ["session_tasks.session_key", "session_tasks.task"],
            ondelete="CASCADE",
        ),
        Index(None, "session_key", "task"),
    )

    key: Mapped[int] = mapped_column(primary_key=True)
    session_key: Mapped[int]
    judgement: Mapped[dict[str, Any] | None] = mapped_column(JSON_OR_NULL)


class ParityRow(Base, record=Parity):
    """A draft in another engine beside this one; see `measure.parity.Parity`."""

    __tablename__ = "parities"
    __table_args__ = (Index(None, "target", "draft", "created_at"),)

    key: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[str]


class ServingSessionRow(Base, record=ServingSession, without=("arms",)):
    """The header of a serving session; see `measure.serving_records.ServingSession`."""

    __tablename__ = "serving_sessions"
    __table_args__ = (Index(None, "plan_sha256", "created_at"), Index(None, "target", "created_at"))

    key: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    plan_sha256: Mapped[str]
    created_at: Mapped[str]
    finished_at: Mapped[str | None]
    target: Mapped[str]
    warnings: Mapped[list[str]] = mapped_column(JSON)

    arms: Mapped[list[ServingArmRow]] = relationship(lazy="selectin", order_by="ServingArmRow.place")


class ServingArmRow(Base, record=ServingArm):
    """A server of a serving session."""

    __tablename__ = "serving_arms"
    __table_args__ = (UniqueConstraint("session_key", "id"),)

    key: Mapped[int] = mapped_column(primary_key=True)
    session_key: Mapped[int] = mapped_column(ForeignKey("serving_sessions.key", ondelete="CASCADE"))
    place: Mapped[int]
    """Index among the session's arms."""
    id: Mapped[str]


class RoundRow(Base, record=Round):
    """A round of a serving session; its arm must be one of the session."""

    __tablename__ = "serving_rounds"
    __table_args__ = (
        UniqueConstraint("session_key", "arm", "concurrency", "index", "attempt"),
        ForeignKeyConstraint(
            ["session_key", "arm"], ["serving_arms.session_key", "serving_arms.id"], ondelete="CASCADE"
        ),
    )

    key: Mapped[int] = mapped_column(primary_key=True)
    session_key: Mapped[int]
    requests: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
