"""Called by Alembic: runs the wanted revisions on the connection that the store hands over.

The caller holds the transaction, so a schema changes as a whole or not at all.
"""

from __future__ import annotations

from alembic import context

from draftrank.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
