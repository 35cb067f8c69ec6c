"""What the store keeps, refuses and gives back."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from draftrank.errors import StoreError
from draftrank.measure.journal import Journal
from draftrank.measure.records import Session, SessionTask
from draftrank.store.store import Store
from draftrank.store.tables import ArmRow, Base, MachineRow, SessionRow, SessionTaskRow, TrialRow
from records import a_machine, a_result, a_session, a_trial, an_arm


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "results.sqlite") as store:
        yield store


def counts(store):
    with closing(sqlite3.connect(store.name)) as connection:
        return {
            name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
            for name in ("machines", "sessions", "session_tasks", "arms", "trials")
        }


def test_a_session_comes_back_as_it_was(store):
    journal: Journal = store
    session = a_session()
    journal.begin_session(session)
    assert journal.find_session(session.plan_sha256) == session
    assert store.sessions() == (session,)
    assert journal.trials(session.id) == ()


def test_trials_come_back_exactly_and_in_one_order_whatever_order_they_came_in(tmp_path):
    result = a_result()
    read = []
    for name, trials in (("forth", result.trials), ("back", result.trials[::-1])):
        with Store.open(tmp_path / name) as store:
            store.begin_session(result.session)
            for trial in trials:
                store.add_trial(result.session.id, trial)
            read.append(store.trials(result.session.id))
    assert read[0] == read[1]
    assert set(read[0]) == set(result.trials)
    assert [trial.task for trial in read[0]] == sorted(trial.task for trial in result.trials)


def test_what_was_stored_is_there_after_opening_anew_by_address(tmp_path):
    path = tmp_path / "a folder" / "50% #1?.sqlite"
    result = a_result()
    with Store.open(path) as store:
        store.add_result(result)
    with Store.open(f"sqlite:///{path}") as store:
        assert set(store.result(result.session.id).trials) == set(result.trials)
    assert path.is_file()


def test_a_session_is_begun_once(store):
    store.begin_session(a_session())
    with pytest.raises(StoreError, match="2026-03-01-aaaa exists already"):
        store.begin_session(a_session(warnings=()))
    assert store.sessions() == (a_session(),)


def test_an_identical_trial_is_ignored_and_another_of_its_key_refused(store):
    store.begin_session(a_session())
    store.add_trial("2026-03-01-aaaa", a_trial())
    store.add_trial("2026-03-01-aaaa", a_trial())
    with pytest.raises(StoreError, match=r"another trial of arm 'ngram-2', task 'chat', prompt 'p1'"):
        store.add_trial("2026-03-01-aaaa", a_trial(decode_s=0.25))
    assert store.trials("2026-03-01-aaaa") == (a_trial(),)


@pytest.mark.parametrize(
    "other",
    [
        {"arm": "baseline"},
        {"task": "arithmetic"},
        {"prompt": "p2"},
        {"turn": 1},
        {"repeat": 1},
    ],
)
def test_each_part_of_the_key_makes_another_trial(store, other):
    store.begin_session(a_session())
    store.add_trial("2026-03-01-aaaa", a_trial())
    store.add_trial("2026-03-01-aaaa", a_trial(**other))
    assert len(store.trials("2026-03-01-aaaa")) == 2


@pytest.mark.parametrize(
    ("session", "trial", "message"),
    [
        ("2026-03-01-bbbb", a_trial(), "no session 2026-03-01-bbbb"),
        ("2026-03-01-aaaa", a_trial(arm="unknown"), "no arm 'unknown'"),
        ("2026-03-01-aaaa", a_trial(task="unknown"), "no task 'unknown'"),
        ("2026-03-01-aaaa", a_trial(prompt_tokens=2**70), "cannot be stored"),
    ],
)
def test_a_trial_that_fits_nowhere_is_refused_and_nothing_stays(store, session, trial, message):
    store.begin_session(a_session())
    with pytest.raises(StoreError, match=message):
        store.add_trial(session, trial)
    assert store.trials("2026-03-01-aaaa") == ()


def test_the_database_itself_refuses_doubles_and_strays(store):
    store.add_result(a_result())
    with closing(sqlite3.connect(store.name)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        columns = ", ".join(c.name for c in TrialRow.__table__.columns if c.name not in ("key", "arm"))
        copy = f"INSERT INTO trials (arm, {columns}) SELECT {{}}, {columns} FROM trials LIMIT 1"
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
            connection.execute(copy.format("arm"))
        with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
            connection.execute(copy.format("'stray'"))


def test_an_arm_is_replaced_as_a_whole(store):
    store.begin_session(a_session())
    failed = an_arm("ngram-2", draft=None, latencies=(), peak_memory_bytes=None, failure="no data")
    store.update_arm("2026-03-01-aaaa", failed)
    assert store.sessions()[0].arms[2] == failed
    assert store.sessions()[0].arms[:2] == a_session().arms[:2]
    store.update_arm("2026-03-01-aaaa", an_arm("ngram-2"))
    assert store.sessions() == (a_session(),)
    with pytest.raises(StoreError, match="no arm 'other'"):
        store.update_arm("2026-03-01-aaaa", an_arm("other"))


def test_warnings_are_kept_once_in_the_order_they_came(store):
    store.begin_session(a_session())
    store.add_warnings("2026-03-01-aaaa", ["b", "a"])
    store.add_warnings("2026-03-01-aaaa", ["a", "c"])
    assert store.sessions()[0].warnings == ("the machine was busy", "b", "a", "c")


def test_finishing_marks_one_session(store):
    store.begin_session(a_session())
    store.begin_session(a_session("2026-03-02-bbbb"))
    store.finish_session("2026-03-01-aaaa", "2026-03-01T11:00:00Z")
    assert [session.finished_at for session in store.sessions()] == ["2026-03-01T11:00:00Z", None]


def test_the_newest_session_of_a_plan_is_found(store):
    for session_id in ("2026-03-02-bbbb", "2026-03-03-cccc", "2026-03-01-aaaa"):
        store.begin_session(a_session(session_id))
    store.begin_session(a_session("2026-03-09-dddd", plan_sha256="9" * 64))
    found = store.find_session("1" * 64)
    assert found is not None
    assert found.id == "2026-03-03-cccc"
    assert store.find_session("0" * 64) is None


def test_sessions_and_results_are_listed_by_age(store):
    store.add_result(a_result("2026-03-02-bbbb", target="other"))
    store.add_result(a_result("2026-03-01-aaaa"))
    assert [session.id for session in store.sessions()] == ["2026-03-01-aaaa", "2026-03-02-bbbb"]
    assert [len(result.trials) for result in store.results()] == [24, 24]


def test_adding_a_result_again_changes_nothing(store):
    result = a_result()
    store.add_result(result)
    before = store.result(result.session.id)
    store.add_result(result.model_copy(update={"trials": result.trials[::-1]}))
    assert store.result(result.session.id) == before
    assert counts(store)["trials"] == 24


def test_a_result_with_other_content_under_a_known_id_is_refused(store):
    result = a_result()
    store.add_result(result)
    for other in (
        result.model_copy(update={"trials": result.trials[1:]}),
        a_result(warnings=()),
        a_result(drafts=("ngram-3",)),
    ):
        with pytest.raises(StoreError, match="exists with other content"):
            store.add_result(other)
    assert set(store.result(result.session.id).trials) == set(result.trials)


def test_a_result_whose_parts_do_not_fit_leaves_nothing_behind(store):
    result = a_result()
    for trials in ((*result.trials, result.trials[0]), (*result.trials, a_trial(arm="unknown"))):
        with pytest.raises(StoreError):
            store.add_result(result.model_copy(update={"trials": trials}))
    assert set(counts(store).values()) == {0}


def test_deleting_removes_a_session_and_only_that(store):
    store.add_result(a_result("2026-03-01-aaaa"))
    store.add_result(a_result("2026-03-02-bbbb"))
    store.add_result(a_result("2026-03-03-cccc", machine=a_machine(cores=16)))
    assert counts(store)["machines"] == 2
    store.delete_session("2026-03-03-cccc")
    store.delete_session("2026-03-01-aaaa")
    assert [session.id for session in store.sessions()] == ["2026-03-02-bbbb"]
    assert counts(store) == {"machines": 1, "sessions": 1, "session_tasks": 2, "arms": 3, "trials": 24}
    with pytest.raises(StoreError, match="no session"):
        store.delete_session("2026-03-01-aaaa")


@pytest.mark.parametrize("call", ["trials", "result", "delete_session"])
def test_an_unknown_session_is_an_error_that_names_it(store, call):
    with pytest.raises(StoreError, match="no session nowhere"):
        getattr(store, call)("nowhere")


def test_a_row_damaged_by_other_means_is_reported_and_not_returned(store):
    store.add_result(a_result())
    with closing(sqlite3.connect(store.name)) as connection, connection:
        connection.execute("UPDATE trials SET steps = steps + 1")
    with pytest.raises(StoreError, match="damaged trial"):
        store.trials("2026-03-01-aaaa")


def test_columns_are_the_fields_of_the_records_and_nothing_derived():
    def columns(row: type[Base]) -> set[str]:
        return {column.name for column in row.__table__.columns} - {"key", "session_key", "place"}

    assert columns(TrialRow) == set(type(a_trial()).model_fields)
    assert columns(ArmRow) == set(type(an_arm("a")).model_fields)
    assert columns(SessionTaskRow) == set(SessionTask.model_fields)
    assert columns(MachineRow) == {"sha256", *type(a_machine()).model_fields}
    assert columns(SessionRow) == {"machine_key", *Session.model_fields} - {"machine", "tasks", "arms"}
