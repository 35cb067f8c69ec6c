"""A real run that is killed, stopped or doubled loses nothing and measures nothing twice."""

from __future__ import annotations

import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from commands import Running, draftrank, several, start

REPEATS = 6  # so that a run is seen and stopped in its midst, also where this process must wait
# Four prompt turns; the baseline, its control and one draft.
TRIALS = 4 * 3 * REPEATS
RUN = ("run", "--draft", "ngram", "--repeats", str(REPEATS), "--json")
CELL = "session_key, arm, task, prompt, turn, repeat"


def store(root: Path) -> Path:
    return root / ".draftrank" / "results.sqlite"


def select(root: Path, query: str) -> list[tuple]:
    """Rows of the store; none while there is no store yet."""
    if not store(root).is_file():
        return []
    with closing(sqlite3.connect(f"{store(root).as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


def trials(root: Path) -> set[tuple]:
    return set(select(root, "SELECT * FROM trials"))


def assert_sound(root: Path) -> None:
    assert select(root, "PRAGMA integrity_check") == [("ok",)]
    assert select(root, "PRAGMA foreign_key_check") == []
    assert select(root, f"SELECT {CELL} FROM trials GROUP BY {CELL} HAVING count(*) > 1") == []


def wait_for(root: Path, count: int, process: Running) -> None:
    """Until the store holds at least `count` trials, while the run goes on."""
    while len(trials(root)) < count:
        assert process.poll() is None, process.finish()
        time.sleep(0.005)


@pytest.fixture
def root(measured_root):
    """A workspace in which nothing has been measured; its cache is warm."""
    for path in (measured_root / ".draftrank").glob("results.sqlite*"):
        path.unlink()
    return measured_root


def test_a_killed_run_goes_on_where_it_stopped(root):
    kept: set[tuple] = set()
    for moment in (1, TRIALS // 3):
        process = start(root, *RUN)
        wait_for(root, moment, process)
        process.send_signal(signal.SIGKILL)
        assert process.finish().code == -signal.SIGKILL
        assert_sound(root)
        assert kept < trials(root), "what was measured before stays"
        kept = trials(root)
    assert moment <= len(kept) < TRIALS
    ran = draftrank(root, *RUN)
    assert ran.code == 0
    assert f"session {ran.json['session']} resumes" in ran.err
    assert_sound(root)
    assert kept < trials(root)
    assert len(trials(root)) == TRIALS
    assert select(root, "SELECT count(*) FROM sessions") == [(1,)]
    assert {number for (number,) in select(root, "SELECT DISTINCT process FROM trials")} == {0, 1, 2}


def test_a_stopped_run_says_so_and_leaves_a_whole_store(root):
    process = start(root, *RUN)
    wait_for(root, 2, process)
    process.send_signal(signal.SIGINT)
    stopped = process.finish()
    assert stopped.code == 130
    assert "run the same command to resume" in stopped.err
    assert stopped.out == ""
    assert_sound(root)
    assert 2 <= len(trials(root)) < TRIALS
    shown, published, board = several(root, ["show"], ["publish"], ["board", "--json"])
    assert "unfinished" in shown.out
    assert published.code == 2
    (row,) = board.json["rows"]
    assert not row["ranked"]


def test_two_runs_at_once_take_turns_and_both_finish(root):
    processes = [start(root, *RUN) for _ in range(2)]
    first, second = (process.finish() for process in processes)
    assert (first.code, second.code) == (0, 0), (first.err, second.err)
    assert first.json == second.json
    told = [outcome.err for outcome in (first, second)]
    assert sum("has measured this already" in err for err in told) == 1
    assert_sound(root)
    assert len(trials(root)) == TRIALS
    assert select(root, "SELECT DISTINCT process FROM trials") == [(0,)]
