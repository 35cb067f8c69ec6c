"""The tables of the results store: the fields of `measure/records.py`, `measure/parity.py` and `measure/serving_records.py`,
one column each.

A column has the name of the record's field; nested values are JSON. Nothing derived is kept. Short
integer keys tie the tables together, and natural constraints see to it that no fact is stored twice.
Each change here needs a migration in `migrations/versions/`; a test compares the two.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

WHOLE = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite's integers have 64 bits, and only by this name do they count up by themselves."""
JSON_OR_NULL = JSON(none_as_null=True)
SESSION_KEY = "sessions.key"


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


class MachineRow(Base):
    """A machine, once however many sessions ran on it."""

    __tablename__ = "machines"

    key: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(unique=True)
    """Hash of all other fields: what makes a machine the same."""
    machine_class: Mapped[str]
    cpu: Mapped[str]
    cores: Mapped[int]
    threads: Mapped[int]
    memory_bytes: Mapped[int]
    gpu: Mapped[str | None]
    platform: Mapped[str]
    python: Mapped[str]
    packages: Mapped[dict[str, str]] = mapped_column(JSON)


class SessionRow(Base):
    """The header of a session."""

    __tablename__ = "sessions"
    __table_args__ = (Index(None, "plan_sha256", "created_at"), Index(None, "target", "created_at"))

    key: Mapped[int] = mapped_column(primary_key=True)
    machine_key: Mapped[int] = mapped_column(ForeignKey("machines.key"), index=True)
    id: Mapped[str] = mapped_column(unique=True)
    plan_sha256: Mapped[str]
    created_at: Mapped[str]
    finished_at: Mapped[str | None]
    suite: Mapped[str]
    suite_sha256: Mapped[str]
    draftrank_version: Mapped[str]
    target: Mapped[str]
    target_sha256: Mapped[str]
    target_weights_sha256: Mapped[str]
    target_parameters: Mapped[int]
    dtype: Mapped[str]
    device: Mapped[str]
    backend: Mapped[str]
    mode: Mapped[dict[str, Any]] = mapped_column(JSON)
    seed: Mapped[int]
    repeats: Mapped[int]
    warnings: Mapped[list[str]] = mapped_column(JSON)
    skipped_tasks: Mapped[list[str]] = mapped_column(JSON)
    target_ci: Mapped[float | None]
    budget_s: Mapped[float | None]
    stopped_by: Mapped[str | None]
    numerics: Mapped[dict[str, Any] | None] = mapped_column(JSON_OR_NULL)
    environment: Mapped[dict[str, Any] | None] = mapped_column(JSON_OR_NULL)

    machine: Mapped[MachineRow] = relationship()
    tasks: Mapped[list[SessionTaskRow]] = relationship(order_by="SessionTaskRow.place")
    arms: Mapped[list[ArmRow]] = relationship(order_by="ArmRow.place")


class SessionTaskRow(Base):
    """A task of a session."""

    __tablename__ = "session_tasks"
    __table_args__ = (UniqueConstraint("session_key", "task"),)

    key: Mapped[int] = mapped_column(primary_key=True)
    session_key: Mapped[int] = mapped_column(ForeignKey(SESSION_KEY, ondelete="CASCADE"))
    place: Mapped[int]
    """Index among the session's tasks."""
    task: Mapped[str]
    task_sha256: Mapped[str]
    prompts: Mapped[list[str]] = mapped_column(JSON)
    turns: Mapped[list[int]] = mapped_column(JSON)
    prompts_sha256: Mapped[str]
    max_new_tokens: Mapped[int]
    rendered_sha256: Mapped[str | None]


class ArmRow(Base):
    """An arm of a session."""

    __tablename__ = "arms"
    __table_args__ = (UniqueConstraint("session_key", "id"),)

    key: Mapped[int] = mapped_column(primary_key=True)
    session_key: Mapped[int] = mapped_column(ForeignKey(SESSION_KEY, ondelete="CASCADE"))
    place: Mapped[int]
    """Index among the session's arms."""
    id: Mapped[str]
    kind: Mapped[str]
    num_speculative_tokens: Mapped[int]
    draft: Mapped[dict[str, Any] | None] = mapped_column(JSON_OR_NULL)
    peak_memory_bytes: Mapped[int | None]
    latencies: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    failure: Mapped[str | None]
    lossy: Mapped[bool]
    sampling: Mapped[dict[str, Any] | None] = mapped_column(JSON_OR_NULL)
    reference: Mapped[dict[str, Any] | None] = mapped_column(JSON_OR_NULL)
    backend: Mapped[str | None]
    dtype: Mapped[str | None]


class TrialRow(Base):
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
    arm: Mapped[str]
    task: Mapped[str]
    prompt: Mapped[str]
    turn: Mapped[int]
    repeat: Mapped[int]
    position: Mapped[int]
    process: Mapped[int]
    started_at: Mapped[str]
    prompt_tokens: Mapped[int]
    token_ids: Mapped[list[int]] = mapped_column(JSON)
    finish: Mapped[str]
    steps: Mapped[int]
    accept_histogram: Mapped[list[int]] = mapped_column(JSON)
    offered: Mapped[list[int]] = mapped_column(JSON)
    proposed: Mapped[int]
    draft_forwards: Mapped[int]
    prefill_s: Mapped[float]
    decode_s: Mapped[float]
    propose_s: Mapped[float]
    verify_s: Mapped[float]
    attempt: Mapped[int]
    conditions: Mapped[dict[str, Any] | None] = mapped_column(JSON_OR_NULL)
    proposal_sizes: Mapped[list[int] | None] = mapped_column(JSON_OR_NULL)
    judgement: Mapped[dict[str, Any] | None] = mapped_column(JSON_OR_NULL)


class ParityRow(Base):
    """A draft in another engine beside this one; see `measure.parity.Parity`."""

    __tablename__ = "parities"
    __table_args__ = (Index(None, "target", "draft", "created_at"),)

    key: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[str]
    draftrank_version: Mapped[str]
    target: Mapped[str]
    target_sha256: Mapped[str]
    target_weights_sha256: Mapped[str]
    draft: Mapped[str]
    build: Mapped[dict[str, Any]] = mapped_column(JSON)
    num_speculative_tokens: Mapped[int]
    engine: Mapped[str]
    engine_version: Mapped[str]
    speculation: Mapped[dict[str, Any]] = mapped_column(JSON)
    form: Mapped[str]
    export_sha256: Mapped[str | None]
    differs: Mapped[list[str]] = mapped_column(JSON)
    suite: Mapped[str]
    suite_sha256: Mapped[str]
    tasks: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    skipped_tasks: Mapped[list[str]] = mapped_column(JSON)
    backend: Mapped[str]
    dtype: Mapped[str]
    device: Mapped[str]
    machine: Mapped[dict[str, Any]] = mapped_column(JSON)
    rounding: Mapped[float]
    rounding_positions: Mapped[int]
    turns: Mapped[list[dict[str, Any]]] = mapped_column(JSON)


class ServingSessionRow(Base):
    """The header of a serving session; see `measure.serving_records.ServingSession`."""

    __tablename__ = "serving_sessions"
    __table_args__ = (Index(None, "plan_sha256", "created_at"), Index(None, "target", "created_at"))

    key: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    plan_sha256: Mapped[str]
    created_at: Mapped[str]
    finished_at: Mapped[str | None]
    draftrank_version: Mapped[str]
    target: Mapped[str]
    target_sha256: Mapped[str]
    target_weights_sha256: Mapped[str]
    server: Mapped[str]
    server_declared: Mapped[dict[str, Any]] = mapped_column(JSON)
    server_sha256: Mapped[str]
    engine: Mapped[str]
    engine_version: Mapped[str]
    dtype: Mapped[str]
    device: Mapped[str]
    machine: Mapped[dict[str, Any]] = mapped_column(JSON)
    environment: Mapped[dict[str, Any] | None] = mapped_column(JSON_OR_NULL)
    suite: Mapped[str]
    suite_sha256: Mapped[str]
    tasks: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    skipped_tasks: Mapped[list[str]] = mapped_column(JSON)
    turns: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    concurrencies: Mapped[list[int]] = mapped_column(JSON)
    rate: Mapped[float | None]
    rounds: Mapped[int]
    seed: Mapped[int]
    warnings: Mapped[list[str]] = mapped_column(JSON)

    arms: Mapped[list[ServingArmRow]] = relationship(order_by="ServingArmRow.place")


class ServingArmRow(Base):
    """A server of a serving session."""

    __tablename__ = "serving_arms"
    __table_args__ = (UniqueConstraint("session_key", "id"),)

    key: Mapped[int] = mapped_column(primary_key=True)
    session_key: Mapped[int] = mapped_column(ForeignKey("serving_sessions.key", ondelete="CASCADE"))
    place: Mapped[int]
    """Index among the session's arms."""
    id: Mapped[str]
    kind: Mapped[str]
    draft_id: Mapped[str | None]
    draft: Mapped[dict[str, Any] | None] = mapped_column(JSON_OR_NULL)
    num_speculative_tokens: Mapped[int]
    speculation: Mapped[dict[str, Any]] = mapped_column(JSON)
    form: Mapped[str | None]
    export_sha256: Mapped[str | None]
    differs: Mapped[list[str]] = mapped_column(JSON)
    flags: Mapped[list[str]] = mapped_column(JSON)
    start_s: Mapped[float | None]
    failure: Mapped[str | None]
    log_tail: Mapped[str | None]


class RoundRow(Base):
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
    arm: Mapped[str]
    concurrency: Mapped[int]
    rate: Mapped[float | None]
    index: Mapped[int]
    position: Mapped[int]
    attempt: Mapped[int]
    process: Mapped[int]
    started_at: Mapped[str]
    wall_s: Mapped[float]
    requests: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    counters: Mapped[dict[str, Any] | None] = mapped_column(JSON_OR_NULL)
    conditions: Mapped[dict[str, Any] | None] = mapped_column(JSON_OR_NULL)
    client_cpu: Mapped[float | None]
    server_cpu: Mapped[float | None]
    server_started: Mapped[int]
    memory_bytes: Mapped[int | None]
    energy_j: Mapped[float | None]
