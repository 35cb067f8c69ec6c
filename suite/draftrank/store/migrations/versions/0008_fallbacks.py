"""How an arm's forwards were computed where the backend's fastest way was not transformers' own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    with op.batch_alter_table("arms") as table:
        table.add_column(sa.Column("fallback", sa.String(), nullable=True))
