"""The database that the site offers: whole, and the same bytes every time."""

from __future__ import annotations

from itertools import permutations

import pytest
from sqlalchemy import Index

from builders import result
from draftrank.errors import StoreError
from draftrank.store.snapshot import database_of
from draftrank.store.store import Store
from draftrank.store.tables import SessionRow


def test_a_snapshot_holds_every_result_whatever_their_order(tmp_path):
    one, other = result({"a": 1.5}), result({"b": 1.2}, id="20261102-b")
    data = database_of([one, other])
    assert data == database_of([other, one])
    path = tmp_path / "copy.sqlite"
    path.write_bytes(data)
    with Store.open(path) as store:
        assert {found.session.id for found in store.results()} == {"20261101-a", "20261102-b"}
        assert set(store.result("20261101-a").trials) == set(one.trials)


def test_the_bytes_do_not_depend_on_the_order_of_a_set(monkeypatch):
    """SQLAlchemy keeps a table's indexes in a set, whose order differs between processes."""
    indexes: set[Index] = SessionRow.__table__.indexes
    assert len(indexes) == 3
    made = set()
    for order in permutations(indexes):
        monkeypatch.setattr(SessionRow.__table__, "indexes", list(order))
        made.add(database_of([result({"a": 1.5})]))
    assert len(made) == 1


def test_nothing_measured_is_an_empty_database(tmp_path):
    path = tmp_path / "copy.sqlite"
    path.write_bytes(database_of([]))
    with Store.open(path) as store:
        assert store.results() == ()


def test_a_session_cannot_stand_in_two_forms():
    with pytest.raises(StoreError, match="other content"):
        database_of([result({"a": 1.5}), result({"a": 1.6})])
