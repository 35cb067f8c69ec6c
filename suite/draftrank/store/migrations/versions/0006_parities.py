"""Drafts in other engines."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from draftrank.store.migrations.columns import WHOLE, columns, key

revision = "0006"
down_revision = "0005"

JSON, TEXT = sa.JSON(), sa.String()


def upgrade() -> None:
    op.create_table(
        "parities",
        key(),
        sa.Column("id", TEXT, nullable=False, unique=True),
        *columns(TEXT, "created_at", "draftrank_version"),
        *columns(TEXT, "target", "target_sha256", "target_weights_sha256", "draft"),
        *columns(JSON, "build"),
        *columns(WHOLE, "num_speculative_tokens"),
        *columns(TEXT, "engine", "engine_version"),
        *columns(JSON, "speculation"),
        *columns(TEXT, "form"),
        *columns(TEXT, "export_sha256", nullable=True),
        *columns(JSON, "differs"),
        *columns(TEXT, "suite", "suite_sha256"),
        *columns(JSON, "tasks", "skipped_tasks"),
        *columns(TEXT, "backend", "dtype", "device"),
        *columns(JSON, "machine"),
        *columns(sa.Double(), "rounding"),
        *columns(WHOLE, "rounding_positions"),
        *columns(JSON, "turns"),
    )
    op.create_index("ix_parities_target_draft_created_at", "parities", ["target", "draft", "created_at"])
