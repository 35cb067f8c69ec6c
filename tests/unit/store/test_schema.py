"""Creating, migrating and refusing store files."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine
from sqlalchemy import inspect as inspect_database

from draftrank.errors import StoreError
from draftrank.store import database
from draftrank.store.database import create_store_engine
from draftrank.store.schema import HEAD, alembic_config, migrate, read_revision
from draftrank.store.store import Store
from draftrank.store.tables import Base
from records import a_result


def execute(path, statement):
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement).fetchall()


def indexes(path):
    return {name for (name,) in execute(path, "SELECT name FROM sqlite_master WHERE type = 'index'")}


def an_old_store(path):
    """A file of the first schema with a session in it."""
    new = path.with_name("new.sqlite")
    with Store.open(new) as store:
        store.add_result(a_result())
    migrate(path, "0001")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("ATTACH ? AS new", (str(new),))
        for table in ("machines", "sessions", "session_tasks", "arms", "trials"):
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            values = ["backend" if column == "runtime" else f'"{column}"' for column in columns]
            connection.execute(f"INSERT INTO {table} SELECT {', '.join(values)} FROM new.{table}")
    assert read_revision(path) == "0001"
    return path


def trials_as_the_first_schema_had_them(path):
    columns = "key, session_key, arm, task, prompt, turn, repeat, token_ids, accept_histogram, decode_s"
    return execute(path, f"SELECT {columns} FROM trials ORDER BY key")


def test_a_new_store_has_the_newest_schema_and_leaves_no_backup(tmp_path):
    path = tmp_path / "new" / "results.sqlite"
    Store.open(path).close()
    assert read_revision(path) == HEAD
    assert {entry.name for entry in path.parent.iterdir()} == {"results.sqlite", "results.sqlite.lock"}


@pytest.mark.parametrize(
    "make",
    [lambda path: migrate(path, HEAD), lambda path: Store.open(path).close()],
    ids=["migrated", "new"],
)
def test_the_migrations_lead_to_exactly_the_tables_of_the_code(tmp_path, make):
    """And so has a new store."""
    path = tmp_path / "results.sqlite"
    make(path)
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        found = inspect_database(connection)
        for table in Base.metadata.tables.values():
            keys = found.get_foreign_keys(table.name)
            assert {key["name"] for key in keys} == {key.name for key in table.foreign_key_constraints}
            assert {key["options"].get("ondelete") for key in keys} == {
                key.ondelete for key in table.foreign_key_constraints
            }
            uniques = {entry["name"] for entry in found.get_unique_constraints(table.name)}
            assert uniques == {c.name for c in table.constraints if c.__visit_name__ == "unique_constraint"}
    engine.dispose()


def test_the_head_named_in_the_code_is_the_only_head_of_the_migrations():
    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [HEAD]


def test_an_older_store_is_backed_up_and_migrated_with_nothing_lost(tmp_path):
    path = an_old_store(tmp_path / "results.sqlite")
    before = trials_as_the_first_schema_had_them(path)
    assert "ix_sessions_plan_sha256_created_at" not in indexes(path)
    with Store.open(path) as store:
        read = store.result("2026-03-01-aaaa")
    assert read_revision(path) == HEAD
    assert "ix_sessions_plan_sha256_created_at" in indexes(path)
    assert set(read.trials) == set(a_result().trials)
    assert read.session == a_result().session
    assert trials_as_the_first_schema_had_them(path) == before
    (backup,) = tmp_path.glob("results.sqlite.0001.*.bak")
    assert read_revision(backup) == "0001"
    assert trials_as_the_first_schema_had_them(backup) == before
    assert execute(backup, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.parametrize(
    ("runtime", "backend"),
    [("torch-native", "cpp"), ("torch-captured", "cuda-graphs"), ("torch-fused", "torch-fused")],
)
def test_a_migration_gives_backends_their_names_of_now(tmp_path, runtime, backend):
    path = an_old_store(tmp_path / "results.sqlite")
    execute(path, f"UPDATE sessions SET runtime = '{runtime}', dtype = 'gguf'")
    with Store.open(path) as store:
        read = store.result("2026-03-01-aaaa").session
    assert (read.backend, read.dtype) == (backend, "gguf")


def test_a_migrated_store_is_not_backed_up_again(tmp_path):
    path = an_old_store(tmp_path / "results.sqlite")
    for _ in range(2):
        Store.open(path).close()
    assert len(list(tmp_path.glob("*.bak"))) == 1


def test_the_backup_holds_what_is_only_in_the_wal(tmp_path):
    path = an_old_store(tmp_path / "results.sqlite")
    with closing(sqlite3.connect(path)) as writer:
        writer.execute("UPDATE sessions SET suite = 'changed'")
        writer.commit()
        assert path.with_name("results.sqlite-wal").stat().st_size > 0
        Store.open(path).close()
    (backup,) = tmp_path.glob("*.bak")
    assert execute(backup, "SELECT suite FROM sessions") == [("changed",)]


def test_a_failed_migration_changes_nothing_and_names_the_backup(tmp_path):
    path = an_old_store(tmp_path / "results.sqlite")
    # The second of the migration's two indexes cannot be made, so the first must not stay either.
    execute(path, "CREATE INDEX ix_sessions_target_created_at ON sessions (target)")
    with pytest.raises(
        StoreError, match=r"nothing was changed.*already exists.*a backup is at .*\.0001\..*\.bak"
    ):
        Store.open(path)
    assert read_revision(path) == "0001"
    assert "ix_sessions_plan_sha256_created_at" not in indexes(path)


def test_tasks_that_only_a_warning_named_as_skipped_are_named_after_the_migration(tmp_path):
    path = an_old_store(tmp_path / "results.sqlite")
    execute(path, """UPDATE sessions SET warnings = '["task absent is skipped: offline", "it was hot"]'""")
    with Store.open(path) as store:
        assert store.sessions()[0].skipped_tasks == ("absent",)


def test_a_newer_schema_is_refused_and_the_file_left_alone(tmp_path):
    path = tmp_path / "results.sqlite"
    Store.open(path).close()
    execute(path, "UPDATE alembic_version SET version_num = '9999'")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"newer draftrank \(schema 9999.*update draftrank"):
        Store.open(path)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.bak"))


def test_another_file_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("these are my notes\n" * 100)
    with pytest.raises(StoreError, match=r"notes\.txt: file is not a database \(name another file"):
        Store.open(path)
    assert path.read_text() == "these are my notes\n" * 100


def test_another_programs_database_is_refused_even_if_it_uses_alembic_too(tmp_path):
    path = tmp_path / "other.sqlite"
    execute(path, "CREATE TABLE alembic_version (version_num TEXT)")
    execute(path, "INSERT INTO alembic_version VALUES ('0001')")
    with pytest.raises(StoreError, match="is not a draftrank store"):
        Store.open(path)
    assert execute(path, "SELECT name FROM sqlite_master") == [("alembic_version",)]


def test_an_empty_file_becomes_a_store(tmp_path):
    path = tmp_path / "results.sqlite"
    path.touch()
    with Store.open(path) as store:
        assert store.sessions() == ()


def test_what_a_killed_creation_left_behind_does_no_harm(tmp_path):
    path = tmp_path / "results.sqlite"
    path.with_name("results.sqlite.new").write_bytes(b"half a database")
    path.with_name("results.sqlite.new-wal").write_bytes(b"half a log")
    Store.open(path).close()
    assert not list(tmp_path.glob("*.new*"))


@pytest.mark.parametrize("address", ["sqlite://", "sqlite+pysqlite:///x", ":memory:", "", "sqlite:///"])
def test_of_sqlite_only_files_can_be_stores(address):
    with pytest.raises(StoreError, match="name it by a path"):
        Store.open(address)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/results\.sqlite: .*folder that can be written"):
        Store.open(tmp_path / "file" / "results.sqlite")
    with pytest.raises(StoreError, match=r"name another file|can be written"):
        Store.open(tmp_path)


def test_every_connection_keeps_the_stores_promises(tmp_path, monkeypatch, synchronous):
    monkeypatch.setattr(database, "SYNCHRONOUS", synchronous)
    path = tmp_path / "results.sqlite"
    Store.open(path).close()
    engine = create_store_engine(path)
    with engine.connect() as one, engine.connect() as other:
        for connection in (one, other):
            read = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
            assert read == {
                "journal_mode": "wal",
                "synchronous": 2,
                "foreign_keys": 1,
                "busy_timeout": 60_000,
            }
    engine.dispose()
