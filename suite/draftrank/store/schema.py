"""The version of a store's tables: a new file gets the newest, an older one is brought to it.

Before a file is changed it is copied whole, beside itself. A file lock lets one process migrate while
others wait; whoever finds the newest schema takes no lock. Only a migration imports Alembic.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from draftrank.errors import StoreError

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection, Engine

HEAD = "0008"
BUSY_S = 60
"""Seconds for which a process waits for another one's lock."""
APPLICATION_ID = 0x64726273
_LOCK_S = 10 * BUSY_S


def ensure_schema(path: Path) -> None:
    """Creates the file at `path`, or migrates it after a backup, so that it has the newest schema.

    Raises:
        StoreError: it is no store, comes from a newer draftrank, is damaged, or cannot be written.
    """
    try:
        if path.is_file() and read_revision(path) == HEAD:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=_LOCK_S):
            revision = read_revision(path) if path.exists() else None
            if revision == HEAD:
                return
            if revision is None:
                _create(path)
            else:
                _require_known(path, revision)
                copy = backup(path, revision)
                migrate(path, HEAD, copy)
    except Timeout as error:
        raise StoreError(
            f"{path}: another process has been migrating it for {_LOCK_S} s (end that process, try again)"
        ) from error
    except OSError as error:
        raise StoreError(
            f"{path}: {error.strerror or error} (name a file in a folder that can be written)"
        ) from error
    except sqlite3.DatabaseError as error:
        raise StoreError(f"{path}: {error} (name another file, or restore a backup)") from error


def ensure_server_schema(engine: Engine, name: str) -> None:
    """Creates the tables in a server's database, or migrates them, in one transaction.

    Raises:
        StoreError: the database holds something else, comes from a newer draftrank, or a migration failed.
    """
    from alembic import command
    from sqlalchemy.exc import SQLAlchemyError

    with engine.connect() as connection:
        if _server_revision(connection, name) == HEAD:
            return
    config = alembic_config()
    try:
        with engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
            if engine.dialect.name == "postgresql":  # of two that come at once, the second finds all done
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({APPLICATION_ID})")
            revision = _server_revision(connection, name)
            if revision is not None:
                _require_known(name, revision)
            config.attributes["connection"] = connection
            command.upgrade(config, HEAD)
    except SQLAlchemyError as error:
        reason = getattr(error, "orig", None) or error
        raise StoreError(
            f"{name}: cannot be brought to schema {HEAD}: {reason} (check the user's rights)"
        ) from error


def _server_revision(connection: Connection, name: str) -> str | None:
    from sqlalchemy import inspect

    tables = set(inspect(connection).get_table_names())
    if not tables:
        return None
    if {"alembic_version", "sessions", "trials"} <= tables:
        return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar())
    raise StoreError(f"{name}: holds other tables (name an empty database)")


def _create(path: Path) -> None:
    """Makes a new store beside `path` and then names it so: nobody ever sees half of one."""
    unfinished = path.with_name(f"{path.name}.new")
    for leftover in path.parent.glob(f"{escape(unfinished.name)}*"):
        leftover.unlink()
    create_from_tables(unfinished)
    os.replace(unfinished, path)


def create_from_tables(path: Path) -> None:
    """Makes a new store from the tables as they are declared, in one go and always with the same bytes.

    Neither migrations nor `create_all` do that: they take a table's constraints or indexes from a set, whose
    order changes from process to process.
    """
    from sqlalchemy.schema import CreateIndex, CreateTable

    from draftrank.store.database import create_store_engine, writing
    from draftrank.store.tables import Base

    engine = create_store_engine(path)
    try:
        with writing(engine).begin() as connection:
            for table in Base.metadata.sorted_tables:
                connection.execute(CreateTable(table))
                for index in sorted(table.indexes, key=lambda index: str(index.name)):
                    connection.execute(CreateIndex(index))
            connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.exec_driver_sql(
                "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"
            )
            connection.exec_driver_sql("INSERT INTO alembic_version VALUES (?)", (HEAD,))
    finally:
        engine.dispose()


def read_revision(path: Path) -> str | None:
    """Revision of an existing file's schema; None when it is empty.

    Raises:
        StoreError: it is another program's database.
        sqlite3.DatabaseError: it is no SQLite database, or is damaged.
    """
    with closing(sqlite3.connect(path, timeout=BUSY_S)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if not tables:
            return None
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if application == APPLICATION_ID and "alembic_version" in tables:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            if row is not None:
                return str(row[0])
    raise StoreError(f"{path}: is not a draftrank store (name another file)")


def backup(path: Path, revision: str) -> Path:
    """Copies the store, committed changes in its WAL included; returns the copy's path."""
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    copy = path.with_name(f"{path.name}.{revision}.{moment}.bak")
    with closing(sqlite3.connect(path, timeout=BUSY_S)) as source, closing(sqlite3.connect(copy)) as to:
        source.backup(to)
        to.execute("PRAGMA journal_mode = DELETE")  # the copy is one file, without a WAL of its own
    return copy


def migrate(path: Path, revision: str, copy: Path | None = None) -> None:
    """Brings the schema up to `revision` in one transaction; on failure nothing has changed.

    Raises:
        StoreError: a migration failed; names the backup `copy`, where there is one.
    """
    from alembic import command
    from sqlalchemy.exc import SQLAlchemyError

    from draftrank.store.database import create_store_engine, writing

    engine = create_store_engine(path, foreign_keys=False)
    config = alembic_config()
    try:
        with writing(engine).begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
            broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
            if broken:
                raise StoreError(f"{path}: {len(broken)} rows refer to missing ones (restore a backup)")
    except SQLAlchemyError as error:
        reason = getattr(error, "orig", None) or error
        kept = f"; a backup is at {copy}" if copy else ""
        raise StoreError(
            f"{path}: cannot be brought to schema {revision}, nothing was changed: {reason} "
            f"(check the disk's free space and the file's permissions{kept})"
        ) from error
    finally:
        engine.dispose()


def alembic_config() -> Config:
    """Alembic's configuration, made here so that an installed package needs no file for it."""
    from alembic.config import Config

    config = Config()
    folder = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _require_known(path: Path | str, revision: str) -> None:
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()}
    if revision not in known:
        raise StoreError(
            f"{path}: was written by a newer draftrank (schema {revision}, this one knows up to {HEAD}) "
            "(update draftrank, or name another store)"
        )
