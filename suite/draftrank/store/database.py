"""How the store's SQLite file is opened: which promises every connection keeps.

- WAL: readers never wait for the one that writes, nor it for them; two processes may share a store.
- `synchronous=FULL`: a commit returns once the disk has it. A trial takes a second and a commit some
  milliseconds, so even a power cut costs the running trial at most; with NORMAL it would cost more.
- Writers take the lock when they begin (`BEGIN IMMEDIATE`), so what they read stays true until they
  commit; whoever comes second waits up to `BUSY_S`.
- Foreign keys hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from draftrank.catalog.base import canonical_json
from draftrank.errors import StoreError

BUSY_S = 60
_BEGIN = "draftrank_begin"


def create_store_engine(path: Path, *, foreign_keys: bool = True) -> Engine:
    """An engine on the file at `path`, which is created when absent.

    `foreign_keys=False` is for migrations only, which may have to rebuild a table.
    """
    engine = create_engine(URL.create("sqlite", database=str(path)), json_serializer=canonical_json)

    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself: `on_begin` does
        connection.execute(f"PRAGMA busy_timeout = {BUSY_S * 1000}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")

    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)
    return engine


def writing(engine: Engine) -> Engine:
    """The same engine, its transactions holding the write lock from their beginning."""
    return engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Turns what the database refuses into a StoreError that names the file and the way out."""
    try:
        yield
    except OperationalError as error:
        raise StoreError(
            f"{path}: {error.orig} (check that the disk has room, that the folder can be written, "
            "and that no other program holds the file)"
        ) from error
    except (SQLAlchemyError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "orig", None) or error
        raise StoreError(f"{path}: cannot be stored or read: {reason} (mend the value)") from error
