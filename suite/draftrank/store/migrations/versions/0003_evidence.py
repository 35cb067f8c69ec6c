"""Evidence beside the numbers: attempts, the machine's conditions, judgements, numerics, stopping."""

from __future__ import annotations

import re

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_CELL = ["session_key", "arm", "task", "prompt", "turn", "repeat"]
_ONCE = "uq_trials_session_key_arm_task_prompt_turn_repeat"
_SKIPPED = re.compile(r"task (\S+) is skipped:")


def upgrade() -> None:
    with op.batch_alter_table("sessions") as table:
        table.add_column(sa.Column("skipped_tasks", sa.JSON(), nullable=False, server_default="[]"))
        table.add_column(sa.Column("precision", sa.Double(), nullable=True))
        table.add_column(sa.Column("budget_s", sa.Double(), nullable=True))
        table.add_column(sa.Column("stopped_by", sa.String(), nullable=True))
        table.add_column(sa.Column("numerics", sa.JSON(), nullable=True))
        table.add_column(sa.Column("environment", sa.JSON(), nullable=True))
    with op.batch_alter_table("arms") as table:
        table.add_column(sa.Column("lossy", sa.Boolean(), nullable=False, server_default=sa.false()))
        table.add_column(sa.Column("sampling", sa.JSON(), nullable=True))
        table.add_column(sa.Column("reference", sa.JSON(), nullable=True))
    with op.batch_alter_table("trials") as table:
        table.add_column(sa.Column("attempt", WHOLE, nullable=False, server_default="0"))
        table.add_column(sa.Column("conditions", sa.JSON(), nullable=True))
        table.add_column(sa.Column("proposal_sizes", sa.JSON(), nullable=True))
        table.add_column(sa.Column("judgement", sa.JSON(), nullable=True))
        table.drop_constraint(_ONCE, type_="unique")
        table.create_unique_constraint(f"{_ONCE}_attempt", [*_CELL, "attempt"])
    _name_skipped_tasks()
    _drop_defaults()


def downgrade() -> None:
    with op.batch_alter_table("trials") as table:
        table.drop_constraint(f"{_ONCE}_attempt", type_="unique")
        table.create_unique_constraint(_ONCE, _CELL)
        for name in ("judgement", "proposal_sizes", "conditions", "attempt"):
            table.drop_column(name)
    with op.batch_alter_table("arms") as table:
        for name in ("reference", "sampling", "lossy"):
            table.drop_column(name)
    with op.batch_alter_table("sessions") as table:
        for name in ("environment", "numerics", "stopped_by", "budget_s", "precision", "skipped_tasks"):
            table.drop_column(name)


def _name_skipped_tasks() -> None:
    """Until now only the wording of a warning told which tasks were skipped."""
    sessions = sa.table(
        "sessions", sa.column("key"), sa.column("warnings", sa.JSON), sa.column("skipped_tasks", sa.JSON)
    )
    connection = op.get_bind()
    for key, warnings in connection.execute(sa.select(sessions.c.key, sessions.c.warnings)).all():
        skipped = [found[1] for text in warnings if (found := _SKIPPED.match(text))]
        connection.execute(sa.update(sessions).where(sessions.c.key == key).values(skipped_tasks=skipped))


def _drop_defaults() -> None:
    for table_name, column in (("sessions", "skipped_tasks"), ("arms", "lossy"), ("trials", "attempt")):
        with op.batch_alter_table(table_name) as table:
            table.alter_column(column, server_default=None)
