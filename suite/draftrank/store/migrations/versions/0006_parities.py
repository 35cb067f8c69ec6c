"""Drafts in other engines."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "parities",
        sa.Column("key", WHOLE, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("created_at", sa.String(), nullable=False),
        sa.Column("draftrank_version", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("target_sha256", sa.String(), nullable=False),
        sa.Column("target_weights_sha256", sa.String(), nullable=False),
        sa.Column("draft", sa.String(), nullable=False),
        sa.Column("build", sa.JSON(), nullable=False),
        sa.Column("num_speculative_tokens", WHOLE, nullable=False),
        sa.Column("engine", sa.String(), nullable=False),
        sa.Column("engine_version", sa.String(), nullable=False),
        sa.Column("speculation", sa.JSON(), nullable=False),
        sa.Column("form", sa.String(), nullable=False),
        sa.Column("export_sha256", sa.String(), nullable=True),
        sa.Column("differs", sa.JSON(), nullable=False),
        sa.Column("suite", sa.String(), nullable=False),
        sa.Column("suite_sha256", sa.String(), nullable=False),
        sa.Column("tasks", sa.JSON(), nullable=False),
        sa.Column("skipped_tasks", sa.JSON(), nullable=False),
        sa.Column("backend", sa.String(), nullable=False),
        sa.Column("dtype", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("machine", sa.JSON(), nullable=False),
        sa.Column("rounding", sa.Double(), nullable=False),
        sa.Column("rounding_positions", WHOLE, nullable=False),
        sa.Column("turns", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_parities")),
        sa.UniqueConstraint("id", name=op.f("uq_parities_id")),
    )
    op.create_index(
        op.f("ix_parities_target_draft_created_at"), "parities", ["target", "draft", "created_at"]
    )


def downgrade() -> None:
    op.drop_index(op.f("ix_parities_target_draft_created_at"), table_name="parities")
    op.drop_table("parities")
