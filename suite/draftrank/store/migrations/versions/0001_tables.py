"""Machines, sessions with their tasks and arms, and trials."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

JSON = sa.JSON()
WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("PRAGMA application_id = 1685217907")
    op.create_table(
        "machines",
        sa.Column("key", WHOLE, nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("machine_class", sa.String(), nullable=False),
        sa.Column("cpu", sa.String(), nullable=False),
        sa.Column("cores", WHOLE, nullable=False),
        sa.Column("threads", WHOLE, nullable=False),
        sa.Column("memory_bytes", WHOLE, nullable=False),
        sa.Column("gpu", sa.String(), nullable=True),
        sa.Column("platform", sa.String(), nullable=False),
        sa.Column("python", sa.String(), nullable=False),
        sa.Column("packages", JSON, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_machines"),
        sa.UniqueConstraint("sha256", name="uq_machines_sha256"),
    )
    op.create_table(
        "sessions",
        sa.Column("key", WHOLE, nullable=False),
        sa.Column("machine_key", WHOLE, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("plan_sha256", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("finished_at", sa.String(), nullable=True),
        sa.Column("suite", sa.String(), nullable=False),
        sa.Column("suite_sha256", sa.String(), nullable=False),
        sa.Column("draftrank_version", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("target_sha256", sa.String(), nullable=False),
        sa.Column("target_weights_sha256", sa.String(), nullable=False),
        sa.Column("target_parameters", WHOLE, nullable=False),
        sa.Column("dtype", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("runtime", sa.String(), nullable=False),
        sa.Column("mode", JSON, nullable=False),
        sa.Column("seed", WHOLE, nullable=False),
        sa.Column("repeats", WHOLE, nullable=False),
        sa.Column("warnings", JSON, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_sessions"),
        sa.UniqueConstraint("id", name="uq_sessions_id"),
        sa.ForeignKeyConstraint(["machine_key"], ["machines.key"], name="fk_sessions_machine_key"),
    )
    op.create_index("ix_sessions_machine_key", "sessions", ["machine_key"])
    op.create_table(
        "session_tasks",
        sa.Column("key", WHOLE, nullable=False),
        sa.Column("session_key", WHOLE, nullable=False),
        sa.Column("place", WHOLE, nullable=False),
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("task_sha256", sa.String(), nullable=False),
        sa.Column("prompts", JSON, nullable=False),
        sa.Column("turns", JSON, nullable=False),
        sa.Column("prompts_sha256", sa.String(), nullable=False),
        sa.Column("max_new_tokens", WHOLE, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_session_tasks"),
        sa.UniqueConstraint("session_key", "task", name="uq_session_tasks_session_key_task"),
        sa.ForeignKeyConstraint(
            ["session_key"], ["sessions.key"], name="fk_session_tasks_session_key", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "arms",
        sa.Column("key", WHOLE, nullable=False),
        sa.Column("session_key", WHOLE, nullable=False),
        sa.Column("place", WHOLE, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("num_speculative_tokens", WHOLE, nullable=False),
        sa.Column("draft", JSON, nullable=True),
        sa.Column("peak_memory_bytes", WHOLE, nullable=True),
        sa.Column("latencies", JSON, nullable=False),
        sa.Column("failure", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("key", name="pk_arms"),
        sa.UniqueConstraint("session_key", "id", name="uq_arms_session_key_id"),
        sa.ForeignKeyConstraint(
            ["session_key"], ["sessions.key"], name="fk_arms_session_key", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "trials",
        sa.Column("key", WHOLE, nullable=False),
        sa.Column("session_key", WHOLE, nullable=False),
        sa.Column("arm", sa.String(), nullable=False),
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("prompt", sa.String(), nullable=False),
        sa.Column("turn", WHOLE, nullable=False),
        sa.Column("repeat", WHOLE, nullable=False),
        sa.Column("position", WHOLE, nullable=False),
        sa.Column("process", WHOLE, nullable=False),
        sa.Column("started_at", sa.String(), nullable=False),
        sa.Column("prompt_tokens", WHOLE, nullable=False),
        sa.Column("token_ids", JSON, nullable=False),
        sa.Column("finish", sa.String(), nullable=False),
        sa.Column("steps", WHOLE, nullable=False),
        sa.Column("accept_histogram", JSON, nullable=False),
        sa.Column("offered", JSON, nullable=False),
        sa.Column("proposed", WHOLE, nullable=False),
        sa.Column("draft_forwards", WHOLE, nullable=False),
        sa.Column("prefill_s", sa.Double(), nullable=False),
        sa.Column("decode_s", sa.Double(), nullable=False),
        sa.Column("propose_s", sa.Double(), nullable=False),
        sa.Column("verify_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_trials"),
        sa.UniqueConstraint(
            "session_key",
            "arm",
            "task",
            "prompt",
            "turn",
            "repeat",
            name="uq_trials_session_key_arm_task_prompt_turn_repeat",
        ),
        sa.ForeignKeyConstraint(
            ["session_key", "arm"],
            ["arms.session_key", "arms.id"],
            name="fk_trials_session_key_arm",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["session_key", "task"],
            ["session_tasks.session_key", "session_tasks.task"],
            name="fk_trials_session_key_task",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_trials_session_key_task", "trials", ["session_key", "task"])


def downgrade() -> None:
    for table in ("trials", "arms", "session_tasks", "sessions", "machines"):
        op.drop_table(table)
