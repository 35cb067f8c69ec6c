"""Indexes for finding sessions: by plan when a run goes on, by target when results are listed."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_index("ix_sessions_plan_sha256_created_at", "sessions", ["plan_sha256", "created_at"])
    op.create_index("ix_sessions_target_created_at", "sessions", ["target", "created_at"])
