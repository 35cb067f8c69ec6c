"""Processes that use one store at once."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from draftrank.store.store import Store
from records import a_session, a_trial

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


def open_a_store(path: Path, barrier) -> None:
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
