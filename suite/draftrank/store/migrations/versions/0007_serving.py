"""Serving sessions, their arms and rounds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from draftrank.store.migrations.columns import WHOLE, columns, key, key_of

revision = "0007"
down_revision = "0006"

JSON, TEXT = sa.JSON(), sa.String()


def upgrade() -> None:
    op.create_table(
        "serving_sessions",
        key(),
        sa.Column("id", TEXT, nullable=False, unique=True),
        *columns(TEXT, "plan_sha256", "created_at"),
        *columns(TEXT, "finished_at", nullable=True),
        *columns(TEXT, "draftrank_version", "target", "target_sha256", "target_weights_sha256", "server"),
        *columns(JSON, "server_declared"),
        *columns(TEXT, "server_sha256", "engine", "engine_version", "dtype", "device"),
        *columns(JSON, "machine"),
        *columns(JSON, "environment", nullable=True),
        *columns(TEXT, "suite", "suite_sha256"),
        *columns(JSON, "tasks", "skipped_tasks", "turns", "concurrencies"),
        *columns(sa.Double(), "rate", nullable=True),
        *columns(WHOLE, "rounds", "seed"),
        *columns(JSON, "warnings"),
    )
    op.create_table(
        "serving_arms",
        key(),
        key_of("serving_sessions"),
        *columns(WHOLE, "place"),
        *columns(TEXT, "id", "kind"),
        *columns(TEXT, "draft_id", nullable=True),
        *columns(JSON, "draft", nullable=True),
        *columns(WHOLE, "num_speculative_tokens"),
        *columns(JSON, "speculation"),
        *columns(TEXT, "form", "export_sha256", nullable=True),
        *columns(JSON, "differs", "flags"),
        *columns(sa.Double(), "start_s", nullable=True),
        *columns(TEXT, "failure", "log_tail", nullable=True),
        sa.UniqueConstraint("session_key", "id"),
    )
    op.create_table(
        "serving_rounds",
        key(),
        *columns(WHOLE, "session_key"),
        *columns(TEXT, "arm"),
        *columns(WHOLE, "concurrency"),
        *columns(sa.Double(), "rate", nullable=True),
        *columns(WHOLE, "index", "position", "attempt", "process"),
        *columns(TEXT, "started_at"),
        *columns(sa.Double(), "wall_s"),
        *columns(JSON, "requests"),
        *columns(JSON, "counters", "conditions", nullable=True),
        *columns(sa.Double(), "client_cpu", "server_cpu", nullable=True),
        *columns(WHOLE, "server_started"),
        *columns(WHOLE, "memory_bytes", nullable=True),
        *columns(sa.Double(), "energy_j", nullable=True),
        sa.ForeignKeyConstraint(
            ["session_key", "arm"], ["serving_arms.session_key", "serving_arms.id"], ondelete="CASCADE"
        ),
        sa.UniqueConstraint("session_key", "arm", "concurrency", "index", "attempt"),
    )
    for column in ("plan_sha256", "target"):
        op.create_index(
            f"ix_serving_sessions_{column}_created_at", "serving_sessions", [column, "created_at"]
        )
