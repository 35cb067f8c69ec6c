"""Sessions and arms name their backend; the target interval width is no longer called precision."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_BACKENDS = {"torch-eager": "transformers", "torch-native": "cpp", "torch-captured": "cuda-graphs"}


def upgrade() -> None:
    with op.batch_alter_table("sessions") as table:
        table.alter_column("runtime", new_column_name="backend")
        table.alter_column("precision", new_column_name="target_ci")
    with op.batch_alter_table("arms") as table:
        table.add_column(sa.Column("backend", sa.String(), nullable=True))
        table.add_column(sa.Column("dtype", sa.String(), nullable=True))
    for old, new in _BACKENDS.items():
        _rename("backend", old, new)
    _rename("stopped_by", "precision", "target_ci")


def _rename(column: str, old: str, new: str) -> None:
    sessions = sa.table("sessions", sa.column(column, sa.String()))
    values = sessions.c[column]
    op.get_bind().execute(sa.update(sessions).where(values == old).values({column: new}))
