"""Serving sessions, their arms and rounds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "serving_sessions",
        sa.Column("key", WHOLE, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("plan_sha256", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("finished_at", sa.String(), nullable=True),
        sa.Column("draftrank_version", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("target_sha256", sa.String(), nullable=False),
        sa.Column("target_weights_sha256", sa.String(), nullable=False),
        sa.Column("server", sa.String(), nullable=False),
        sa.Column("server_declared", sa.JSON(), nullable=False),
        sa.Column("server_sha256", sa.String(), nullable=False),
        sa.Column("engine", sa.String(), nullable=False),
        sa.Column("engine_version", sa.String(), nullable=False),
        sa.Column("dtype", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("machine", sa.JSON(), nullable=False),
        sa.Column("environment", sa.JSON(), nullable=True),
        sa.Column("suite", sa.String(), nullable=False),
        sa.Column("suite_sha256", sa.String(), nullable=False),
        sa.Column("tasks", sa.JSON(), nullable=False),
        sa.Column("skipped_tasks", sa.JSON(), nullable=False),
        sa.Column("turns", sa.JSON(), nullable=False),
        sa.Column("concurrencies", sa.JSON(), nullable=False),
        sa.Column("rate", sa.Double(), nullable=True),
        sa.Column("rounds", WHOLE, nullable=False),
        sa.Column("seed", WHOLE, nullable=False),
        sa.Column("warnings", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_serving_sessions")),
        sa.UniqueConstraint("id", name=op.f("uq_serving_sessions_id")),
    )
    op.create_table(
        "serving_arms",
        sa.Column("key", WHOLE, nullable=False),
        sa.Column("session_key", WHOLE, nullable=False),
        sa.Column("place", WHOLE, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("draft_id", sa.String(), nullable=True),
        sa.Column("draft", sa.JSON(), nullable=True),
        sa.Column("num_speculative_tokens", WHOLE, nullable=False),
        sa.Column("speculation", sa.JSON(), nullable=False),
        sa.Column("form", sa.String(), nullable=True),
        sa.Column("export_sha256", sa.String(), nullable=True),
        sa.Column("differs", sa.JSON(), nullable=False),
        sa.Column("flags", sa.JSON(), nullable=False),
        sa.Column("start_s", sa.Double(), nullable=True),
        sa.Column("failure", sa.String(), nullable=True),
        sa.Column("log_tail", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["session_key"],
            ["serving_sessions.key"],
            name=op.f("fk_serving_arms_session_key"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_serving_arms")),
        sa.UniqueConstraint("session_key", "id", name=op.f("uq_serving_arms_session_key_id")),
    )
    op.create_table(
        "serving_rounds",
        sa.Column("key", WHOLE, nullable=False),
        sa.Column("session_key", WHOLE, nullable=False),
        sa.Column("arm", sa.String(), nullable=False),
        sa.Column("concurrency", WHOLE, nullable=False),
        sa.Column("rate", sa.Double(), nullable=True),
        sa.Column("index", WHOLE, nullable=False),
        sa.Column("position", WHOLE, nullable=False),
        sa.Column("attempt", WHOLE, nullable=False),
        sa.Column("process", WHOLE, nullable=False),
        sa.Column("started_at", sa.String(), nullable=False),
        sa.Column("wall_s", sa.Double(), nullable=False),
        sa.Column("requests", sa.JSON(), nullable=False),
        sa.Column("counters", sa.JSON(), nullable=True),
        sa.Column("conditions", sa.JSON(), nullable=True),
        sa.Column("client_cpu", sa.Double(), nullable=True),
        sa.Column("server_cpu", sa.Double(), nullable=True),
        sa.Column("server_started", WHOLE, nullable=False),
        sa.Column("memory_bytes", WHOLE, nullable=True),
        sa.Column("energy_j", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["session_key", "arm"],
            ["serving_arms.session_key", "serving_arms.id"],
            name=op.f("fk_serving_rounds_session_key_arm"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_serving_rounds")),
        sa.UniqueConstraint(
            "session_key",
            "arm",
            "concurrency",
            "index",
            "attempt",
            name=op.f("uq_serving_rounds_session_key_arm_concurrency_index_attempt"),
        ),
    )
    op.create_index(
        op.f("ix_serving_sessions_plan_sha256_created_at"), "serving_sessions", ["plan_sha256", "created_at"]
    )
    op.create_index(
        op.f("ix_serving_sessions_target_created_at"), "serving_sessions", ["target", "created_at"]
    )


def downgrade() -> None:
    op.drop_index(op.f("ix_serving_sessions_target_created_at"), table_name="serving_sessions")
    op.drop_index(op.f("ix_serving_sessions_plan_sha256_created_at"), table_name="serving_sessions")
    op.drop_table("serving_rounds")
    op.drop_table("serving_arms")
    op.drop_table("serving_sessions")
