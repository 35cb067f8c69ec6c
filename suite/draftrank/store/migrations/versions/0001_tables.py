"""Machines, sessions with their tasks and arms, and trials."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from draftrank.store.migrations.columns import WHOLE, columns, key, key_of

revision = "0001"
down_revision = None

JSON, TEXT = sa.JSON(), sa.String()


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("PRAGMA application_id = 1685217907")
    op.create_table(
        "machines",
        key(),
        sa.Column("sha256", TEXT, nullable=False, unique=True),
        *columns(TEXT, "machine_class", "cpu"),
        *columns(WHOLE, "cores", "threads", "memory_bytes"),
        *columns(TEXT, "gpu", nullable=True),
        *columns(TEXT, "platform", "python"),
        *columns(JSON, "packages"),
    )
    op.create_table(
        "sessions",
        key(),
        sa.Column("machine_key", WHOLE, sa.ForeignKey("machines.key"), nullable=False, index=True),
        sa.Column("id", TEXT, nullable=False, unique=True),
        *columns(TEXT, "plan_sha256", "created_at"),
        *columns(TEXT, "finished_at", nullable=True),
        *columns(TEXT, "suite", "suite_sha256", "draftrank_version"),
        *columns(TEXT, "target", "target_sha256", "target_weights_sha256"),
        *columns(WHOLE, "target_parameters"),
        *columns(TEXT, "dtype", "device", "runtime"),
        *columns(JSON, "mode"),
        *columns(WHOLE, "seed", "repeats"),
        *columns(JSON, "warnings"),
    )
    op.create_table(
        "session_tasks",
        key(),
        key_of("sessions"),
        *columns(WHOLE, "place"),
        *columns(TEXT, "task", "task_sha256"),
        *columns(JSON, "prompts", "turns"),
        *columns(TEXT, "prompts_sha256"),
        *columns(WHOLE, "max_new_tokens"),
        sa.UniqueConstraint("session_key", "task"),
    )
    op.create_table(
        "arms",
        key(),
        key_of("sessions"),
        *columns(WHOLE, "place"),
        *columns(TEXT, "id", "kind"),
        *columns(WHOLE, "num_speculative_tokens"),
        *columns(JSON, "draft", nullable=True),
        *columns(WHOLE, "peak_memory_bytes", nullable=True),
        *columns(JSON, "latencies"),
        *columns(TEXT, "failure", nullable=True),
        sa.UniqueConstraint("session_key", "id"),
    )
    op.create_table(
        "trials",
        key(),
        *columns(WHOLE, "session_key"),
        *columns(TEXT, "arm", "task", "prompt"),
        *columns(WHOLE, "turn", "repeat", "position", "process"),
        *columns(TEXT, "started_at"),
        *columns(WHOLE, "prompt_tokens"),
        *columns(JSON, "token_ids"),
        *columns(TEXT, "finish"),
        *columns(WHOLE, "steps"),
        *columns(JSON, "accept_histogram", "offered"),
        *columns(WHOLE, "proposed", "draft_forwards"),
        *columns(sa.Double(), "prefill_s", "decode_s", "propose_s", "verify_s"),
        sa.UniqueConstraint("session_key", "arm", "task", "prompt", "turn", "repeat"),
        sa.ForeignKeyConstraint(["session_key", "arm"], ["arms.session_key", "arms.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["session_key", "task"], ["session_tasks.session_key", "session_tasks.task"], ondelete="CASCADE"
        ),
    )
    op.create_index("ix_trials_session_key_task", "trials", ["session_key", "task"])
