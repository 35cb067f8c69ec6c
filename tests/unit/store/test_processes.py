"""Several processes on one store, and processes that are killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

from draftrank.store.schema import HEAD, migrate, read_revision
from draftrank.store.store import Store
from records import a_trial
from store_processes import TRIALS, open_a_store, run_together, write_a_session


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
    run_together(open_a_store, [(path,)] * 3)
    assert read_revision(path) == HEAD
    assert len(list(tmp_path.glob("*.bak"))) == 1


_ENDLESS = """
import sys
from records import a_session, a_trial
from draftrank.store.store import Store
store = Store.open(sys.argv[1])
store.begin_session(a_session())
for number in range(1_000_000):
    store.add_trial("2026-03-01-aaaa", a_trial(prompt=f"p{number}"))
    print(number, flush=True)
"""


def test_a_killed_process_loses_no_trial_that_was_stored(tmp_path):
    path = tmp_path / "results.sqlite"
    process = subprocess.Popen(
        [sys.executable, "-c", _ENDLESS, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
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
