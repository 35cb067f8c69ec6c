"""Evidence beside the numbers: attempts, the machine's conditions, judgements, numerics, stopping."""

from __future__ import annotations

import re

import sqlalchemy as sa
from alembic import op

from draftrank.store.migrations.columns import WHOLE, columns

revision = "0003"
down_revision = "0002"

_CELL = ["session_key", "arm", "task", "prompt", "turn", "repeat"]
_ONCE = "uq_trials_session_key_arm_task_prompt_turn_repeat"
_SKIPPED = re.compile(r"task (\S+) is skipped:")


def upgrade() -> None:
    with op.batch_alter_table("sessions") as table:
        table.add_column(sa.Column("skipped_tasks", sa.JSON(), nullable=False, server_default="[]"))
        for column in (
            *columns(sa.Double(), "precision", "budget_s", nullable=True),
            *columns(sa.String(), "stopped_by", nullable=True),
            *columns(sa.JSON(), "numerics", "environment", nullable=True),
        ):
            table.add_column(column)
    with op.batch_alter_table("arms") as table:
        table.add_column(sa.Column("lossy", sa.Boolean(), nullable=False, server_default=sa.false()))
        for column in columns(sa.JSON(), "sampling", "reference", nullable=True):
            table.add_column(column)
    with op.batch_alter_table("trials") as table:
        table.add_column(sa.Column("attempt", WHOLE, nullable=False, server_default="0"))
        for column in columns(sa.JSON(), "conditions", "proposal_sizes", "judgement", nullable=True):
            table.add_column(column)
        table.drop_constraint(_ONCE, type_="unique")
        table.create_unique_constraint(f"{_ONCE}_attempt", [*_CELL, "attempt"])
    _name_skipped_tasks()
    _drop_defaults()


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
