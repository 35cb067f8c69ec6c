"""Columns as the migrations declare them. Keys and constraints get the names that `tables.Base` gives them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def columns(kind: sa.types.TypeEngine[Any], *names: str, nullable: bool = False) -> list[sa.Column[Any]]:
    """Columns of one type."""
    return [sa.Column(name, kind, nullable=nullable) for name in names]


def key() -> sa.Column[Any]:
    """A table's own key."""
    return sa.Column("key", WHOLE, primary_key=True)


def key_of(table: str) -> sa.Column[Any]:
    """Of a part: the key of the session in this table, with which it is removed."""
    return sa.Column("session_key", WHOLE, sa.ForeignKey(f"{table}.key", ondelete="CASCADE"), nullable=False)
