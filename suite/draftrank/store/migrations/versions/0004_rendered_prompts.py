"""The hash of the token ids that a task's prompts were rendered to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    with op.batch_alter_table("session_tasks") as table:
        table.add_column(sa.Column("rendered_sha256", sa.String(), nullable=True))
