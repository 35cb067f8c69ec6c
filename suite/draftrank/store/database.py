"""How the store's database is opened: what every connection guarantees.

In an SQLite file:

- WAL: readers never wait for the one that writes, nor it for them; two processes may share a store.
- `synchronous=FULL`: a commit returns once the disk has it. A trial takes a second and a commit some
  milliseconds, so even a power cut costs the running trial at most; with NORMAL it would cost more.
- Writers take the lock when they begin (`BEGIN IMMEDIATE`), so what they read stays true until they
  commit; whoever comes second waits up to `BUSY_S`.
- Foreign keys hold.

In a database server:

- Readers see everything as it was at one moment (`REPEATABLE READ`).
- Writers lock the one row that names the schema when they begin, so there is one at a time as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import NoSuchModuleError, OperationalError, SQLAlchemyError

from draftrank.catalog.base import canonical_json
from draftrank.errors import StoreError
from draftrank.store.schema import BUSY_S

SYNCHRONOUS = "FULL"
"""How long a commit to an SQLite file waits for the disk."""
_BEGIN = "draftrank_begin"
_WAY_OUT = {
    "file": "check that the disk has room, that the folder can be written, and that no other program holds the file",
    "server": "check that the server runs, and that this user may write the database",
}
_LOCK = "SELECT version_num FROM alembic_version FOR UPDATE"


def create_server_engine(url: URL) -> Engine:
    """An engine on a database server.

    Raises:
        StoreError: no driver for it is installed.
    """
    try:
        engine = create_engine(
            url, json_serializer=canonical_json, isolation_level="REPEATABLE READ", pool_pre_ping=True
        )
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise StoreError(
            f"{shown(url)}: there is no driver for it: {error} "
            "(for PostgreSQL: pip install 'draftrank[postgresql]')"
        ) from error

    def on_begin(connection: Connection) -> None:
        if _BEGIN in connection.get_execution_options():
            connection.exec_driver_sql(_LOCK)

    event.listen(engine, "begin", on_begin)
    return engine


def shown(url: URL) -> str:
    """An address for people to read, without its password."""
    return url.render_as_string(hide_password=True)


def create_store_engine(path: Path, *, foreign_keys: bool = True) -> Engine:
    """An engine on the SQLite file at `path`, which is created when absent.

    `foreign_keys=False` is for migrations only, which may have to rebuild a table.
    """
    engine = create_engine(URL.create("sqlite", database=str(path)), json_serializer=canonical_json)

    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself: `on_begin` does
        connection.execute(f"PRAGMA busy_timeout = {BUSY_S * 1000}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
        connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")

    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)
    return engine


def writing(engine: Engine) -> Engine:
    """The same engine, its transactions holding the write lock from their beginning."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})
    # What is read after waiting for the lock must be what the one before has written.
    return engine.execution_options(isolation_level="READ COMMITTED", **{_BEGIN: _LOCK})


@contextmanager
def store_errors(name: str) -> Iterator[None]:
    """Turns what the database refuses into a StoreError that names the store and the way out."""
    try:
        yield
    except OperationalError as error:
        raise StoreError(
            f"{name}: {error.orig} ({_WAY_OUT['server' if '://' in name else 'file']})"
        ) from error
    except (SQLAlchemyError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "orig", None) or error
        raise StoreError(f"{name}: cannot be stored or read: {reason} (mend the value)") from error
