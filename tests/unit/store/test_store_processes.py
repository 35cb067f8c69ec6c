"""Several processes on one store, and processes that are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from records_for_tests import a_session, a_trial

from draftrank.store.schema import HEAD, migrate, read_revision
from draftrank.store.store import Store

SPAWN = multiprocessing.get_context("spawn")
TRIALS = 40


def write_a_session(path: Path, session_id: str, barrier) -> None:
    barrier.wait()
    with Store.open(path) as store:
        store.begin_session(a_session(session_id))
        for number in range(TRIALS):
            store.add_trial(session_id, a_trial(prompt=f"p{number}"))
            assert len(store.trials(session_id)) == number + 1
            assert len(store.sessions()) in (1, 2)
        store.finish_session(session_id, "2026-03-01T12:00:00Z")


def _open(path: Path, barrier) -> None:
    barrier.wait()
    Store.open(path).close()


def run_together(target, arguments):
    barrier = SPAWN.Barrier(len(arguments))
    processes = [SPAWN.Process(target=target, args=(*values, barrier)) for values in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes)


def test_two_processes_share_a_store_from_its_creation_on(tmp_path):
    path = tmp_path / "results.sqlite"
    names = ["2026-03-01-aaaa", "2026-03-01-bbbb"]
    run_together(write_a_session, [(path, name) for name in names])
    with Store.open(path) as store:
        for name in names:
            expected = {a_trial(prompt=f"p{number}") for number in range(TRIALS)}
            assert set(store.trials(name)) == expected
        assert [session.finished_at is not None for session in store.sessions()] == [True, True]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


def test_processes_that_open_an_old_store_together_migrate_it_once(tmp_path):
    path = tmp_path / "results.sqlite"
    migrate(path, "0001")
    run_together(_open, [(path,)] * 3)
    assert read_revision(path) == HEAD
    assert len(list(tmp_path.glob("*.bak"))) == 1


_ENDLESS = """
import sys
from records_for_tests import a_session, a_trial
from draftrank.store.store import Store
store = Store.open(sys.argv[1])
store.begin_session(a_session())
for number in range(1_000_000):
    store.add_trial("2026-03-01-aaaa", a_trial(prompt=f"p{number}"))
    print(number, flush=True)
"""


def test_a_killed_process_loses_no_trial_that_was_stored(tmp_path):
    path = tmp_path / "results.sqlite"
    folders = [str(Path(__file__).parent), *filter(None, sys.path)]
    process = subprocess.Popen(
        [sys.executable, "-c", _ENDLESS, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
    )
    assert process.stdout is not None
    printed = [int(process.stdout.readline()) for _ in range(25)]
    process.send_signal(signal.SIGKILL)
    printed += [int(line) for line in process.stdout.read().split()]
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    with Store.open(path) as store:
        kept = {trial.prompt for trial in store.trials("2026-03-01-aaaa")}
        assert {f"p{number}" for number in printed} <= kept
        # At most the one trial whose storing had ended but was not printed any more.
        assert len(kept) - len(printed) in (0, 1)
        store.add_trial("2026-03-01-aaaa", a_trial(prompt="next"))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
