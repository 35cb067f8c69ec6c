"""The store in a real PostgreSQL server: the same records, the same guarantees."""

from __future__ import annotations

from itertools import count

import pytest
from sqlalchemy import create_engine, text

from draftrank.errors import StoreError
from draftrank.measure.evidence import Judgement
from draftrank.store.bundle import publish
from draftrank.store.shared_bundles import import_file
from draftrank.store.store import Store
from postgresql import running_server
from records import a_result, a_session, a_trial
from store_processes import TRIALS, run_together, write_a_session

_NUMBERS = count()


@pytest.fixture(scope="module")
def server():
    with running_server() as address:
        yield address


def run(address, *statements):
    engine = create_engine(address, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        results = [connection.execute(text(statement)) for statement in statements]
        found = [tuple(row) for row in results[-1]] if results[-1].returns_rows else []
    engine.dispose()
    return found


@pytest.fixture
def url(server):
    name = f"draftrank_{next(_NUMBERS)}"
    run(server.format(database="postgres"), f"CREATE DATABASE {name}")
    return server.format(database=name)


def test_what_is_stored_comes_back_as_from_a_file(url, tmp_path):
    result = a_result()
    with Store.open(url) as store, Store.open(tmp_path / "store.sqlite") as file:
        for one in (store, file):
            one.add_result(result)
            one.add_result(result)  # an identical one is ignored
        assert store.results() == file.results()
        assert store.sessions() == file.sessions()
    with Store.open(url) as again:
        assert again.results()[0].session.id == result.session.id
        again.delete_session(result.session.id)
        assert again.results() == ()
    assert run(url, "SELECT count(*) FROM machines") == run(url, "SELECT count(*) FROM trials") == [(0,)]


def test_a_session_is_written_piece_by_piece(url):
    session = a_session()
    trial = a_trial()
    with Store.open(url) as store:
        store.begin_session(session)
        store.add_trial(session.id, trial)
        store.add_trial(session.id, trial)
        with pytest.raises(StoreError, match="holds another trial"):
            store.add_trial(session.id, trial.model_copy(update={"decode_s": trial.decode_s + 1}))
        with pytest.raises(StoreError, match="has no arm"):
            store.add_trial(session.id, a_trial("nobody"))
        judged = trial.model_copy(update={"judgement": Judgement()})
        store.judge_trial(session.id, judged)
        store.add_warnings(session.id, ["warm", "warm"])
        store.finish_session(session.id, "2026-03-01T12:00:00Z")
        with pytest.raises(StoreError, match="exists already"):
            store.begin_session(session)
        assert store.trials(session.id) == (judged,)
        assert store.find_session(session.plan_sha256).warnings == (*session.warnings, "warm")


def test_bundles_travel_between_a_server_and_files(url, tmp_path):
    with Store.open(tmp_path / "store.sqlite") as file:
        file.add_result(a_result())
        (path,) = publish(file.results()[0], tmp_path / "results")
    with Store.open(url) as store:
        import_file(path, store)
        assert publish(store.results()[0], tmp_path / "again")[0].read_bytes() == path.read_bytes()


def test_two_processes_share_a_server_from_the_first_table_on(url):
    names = ["2026-03-01-aaaa", "2026-03-01-bbbb"]
    run_together(write_a_session, [(url, name) for name in names])
    with Store.open(url) as store:
        for name in names:
            assert len(store.trials(name)) == TRIALS
        assert all(session.finished_at is not None for session in store.sessions())
    assert run(url, "SELECT count(*) FROM machines") == [(1,)]


def test_a_database_of_something_else_is_left_alone(url):
    run(url, "CREATE TABLE notes (text TEXT)")
    with pytest.raises(StoreError, match="holds other tables"):
        Store.open(url)
    assert run(url, "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'") == [
        ("notes",)
    ]


def test_a_store_of_a_newer_draftrank_is_left_alone(url):
    Store.open(url).close()
    run(url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="newer draftrank"):
        Store.open(url)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("?host=", "?host=/nowhere"), "check that the server runs"),
        (("/draftrank_", "/absent_"), "check that the server runs"),
        (("postgresql+psycopg", "nosuch"), "no driver"),
        (("postgresql+psycopg", "postgresql+nosuch"), "no driver"),
    ],
)
def test_a_server_that_cannot_be_reached_is_named_without_the_password(url, change, reason):
    with pytest.raises(StoreError, match=reason) as caught:
        Store.open(url.replace(*change))
    assert "secret" not in str(caught.value)
    assert "***" in str(caught.value)


def test_an_address_that_is_none_is_refused():
    with pytest.raises(StoreError, match="address is none"):
        Store.open("postgresql:://secret@")
