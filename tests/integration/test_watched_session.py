"""A session on a machine that is not left alone: it notices, tries again, and says so."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from commands import MAX_S
from draftrank import Store, Workspace, summarise
from draftrank.measure.gates import clocks
from draftrank.measure.gates.timeline import timeline_problems
from draftrank.measure.gates.verdict import judge
from draftrank.measure.machine import conditions
from draftrank.measure.machine.counters import Counters, KernelCounters
from draftrank.measure.sessions import bench, session
from models import save_small_target
from workspaces import run_drafts, write_workspace

PROMPT_TURNS, ARMS = 4, 3
# A large machine bears a busy thread or two, so there are more of them there.
BURN = """
import os, threading, torch
torch.set_num_threads(1)
matrix = torch.randn(256, 256)
def burn():
    while True:
        matrix @ matrix
for _ in range(os.cpu_count() // 16):
    threading.Thread(target=burn, daemon=True).start()
print("ready", flush=True)
burn()
"""


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A watch that does not wait long. Where this process itself must wait for a processor is no pause."""
    root = write_workspace(tmp_path)
    save_small_target(root / "models" / "tiny", window=1024)
    monkeypatch.setenv("DRAFTRANK_WATCH", "on")
    monkeypatch.setattr(session, "PAUSE_S", 0.2)
    monkeypatch.setattr(conditions, "LOOK_S", 0.1)
    monkeypatch.setattr(clocks, "PAUSE_S", 1e9)
    return Workspace.open(root)


def measured(workspace):
    return run_drafts(workspace.root, "ngram", repeats=1, target_ci=None)


def findings(result):
    """The gates that the draft did not pass, with their reasons."""
    summary = summarise(result)
    draft = next(arm for arm in summary.arms if arm.arm.id == "ngram")
    return {finding.gate: finding.reason for finding in judge(summary, draft).findings}


class InjectedMachine:
    """A machine of two processors; `others` says how many of them other processes keep busy, given how
    many windows have been watched before."""

    processors = threads = 2

    def __init__(self, others):
        self.others = others
        self.reads = 0
        self.busy_s = 0.0
        self.before = None

    def counters(self):
        now, own = time.perf_counter(), time.process_time()
        if self.reads % 2:
            # Every window is long enough for its report, so each trial has one.
            self.elapsed += 1.0
            self.busy_s += self.others(self.reads // 2) + own - self.before
        else:
            self.elapsed = now
            self.busy_s += own - (self.before or own)
        self.before = own
        self.reads += 1
        return Counters(self.elapsed, own, self.busy_s)

    def frequency_hz(self):
        return None

    def gpu(self):
        return None


@pytest.fixture
def inject(monkeypatch):
    def put(others):
        monkeypatch.setattr(bench, "ThisMachine", lambda _: InjectedMachine(others))

    return put


def test_a_prompt_turn_with_a_pause_in_it_is_decoded_again(workspace, inject, monkeypatch):
    """A stopwatch that stood still could not be told from a pause, so its trials do not stand."""
    inject(lambda _: 0.0)
    monkeypatch.setattr(clocks, "PAUSE_S", MAX_S)  # no machine is that busy
    added, paused = Store.add_trial, []

    def add(self, session_id, trial):
        if not paused and trial.position == 0:
            paused.append(trial.cell)
        added(self, session_id, trial)

    def later():
        now = datetime.now(UTC) + len(paused) * timedelta(seconds=2 * MAX_S)
        return now.isoformat(timespec="milliseconds")

    monkeypatch.setattr(Store, "add_trial", add)
    for module in (bench, session):
        monkeypatch.setattr(module, "utc_now", later)
    result = measured(workspace)
    again = {trial.cell for trial in result.trials if trial.attempt}
    assert again == set(paused)
    assert "implausible-clock" not in findings(result)
    assert timeline_problems(result) == []  # what `verify` asks of its bundles


@pytest.mark.skipif(KernelCounters().read().busy_s is None, reason="no counters of processors here")
def test_a_second_torch_process_is_caught(workspace, monkeypatch):
    monkeypatch.setattr(session, "PATIENCE_BLOCKS", 1)
    task = workspace.root / "tasks" / "small.yaml"  # long enough for the kernel's counters
    task.write_text(task.read_text().replace("max_new_tokens: 12", "max_new_tokens: 150"))
    burner = subprocess.Popen([sys.executable, "-c", BURN], stdout=subprocess.PIPE, text=True)
    try:
        assert burner.stdout.readline() == "ready\n"
        result = measured(workspace)
    finally:
        burner.kill()
        burner.communicate()
    if all(trial.conditions is None or trial.conditions.others_cpus is None for trial in result.trials):
        pytest.skip("the counters here leave this process out")
    assert max(trial.attempt for trial in result.trials) >= 1, "disturbed prompt turns were decoded again"
    reason = findings(result)["disturbed"]
    assert "unstable: the machine was disturbed in" in reason
    assert "other processes kept" in reason
    stability = summarise(result).stability
    assert stability.repeated >= 1
    assert stability.disturbed > 0


def test_a_calm_machine_is_left_to_decode_once(workspace, inject):
    inject(lambda _: 0.02)
    result = measured(workspace)
    assert {trial.attempt for trial in result.trials} == {0}
    assert {trial.conditions.others_cpus for trial in result.trials} == {0.02}
    assert not findings(result).keys() & {"disturbed", "throttled"}


def test_a_short_disturbance_is_waited_out(workspace, inject):
    # The second trial of the session, and the first look whether it is over.
    inject(lambda window: 1.5 if window in (1, 3) else 0.0)
    result = measured(workspace)
    assert len(result.trials) == (PROMPT_TURNS + 1) * ARMS
    again = [trial for trial in result.trials if trial.attempt == 1]
    assert len(again) == ARMS
    assert len({trial.cell for trial in again}) == 1
    assert "disturbed" not in findings(result)
    stability = summarise(result).stability
    assert (stability.repeated, stability.disturbed, stability.watched) == (1, 0, PROMPT_TURNS)


def test_a_machine_that_is_never_calm_is_unstable_and_not_measured_for_ever(workspace, inject):
    inject(lambda _: 1.5)
    result = measured(workspace)
    assert len(result.trials) == PROMPT_TURNS * ARMS * session.ATTEMPTS
    assert "disturbed in 100% of the prompt turns" in findings(result)["disturbed"]


def test_patience_ends(workspace, inject, monkeypatch):
    monkeypatch.setattr(session, "PATIENCE_BLOCKS", 1)
    inject(lambda _: 1.5)
    result = measured(workspace)
    # Only the first prompt turn was decoded three times.
    assert len(result.trials) == (PROMPT_TURNS + 2) * ARMS


def test_what_stayed_disturbed_is_decoded_again_once_the_machine_is_calm(workspace, inject, monkeypatch):
    monkeypatch.setattr(session, "PATIENCE_BLOCKS", 1)
    # Three attempts at the first prompt turn with looks between them, then one at each of the others.
    windows = 3 * ARMS + 2 * 2 + 3 * ARMS
    inject(lambda window: 1.5 if window < windows else 0.0)
    result = measured(workspace)
    assert len(result.trials) == (2 * PROMPT_TURNS + 2) * ARMS
    assert "disturbed" not in findings(result)
    assert summarise(result).stability.repeated == PROMPT_TURNS


def test_without_a_watch_nothing_is_kept_and_nothing_repeated(workspace, inject, monkeypatch):
    monkeypatch.setenv("DRAFTRANK_WATCH", "off")
    inject(lambda _: 1.5)
    result = measured(workspace)
    assert {trial.conditions for trial in result.trials} == {None}
    assert summarise(result).stability.watched == 0


def test_the_watch_does_not_decide_what_is_measured(workspace, inject, monkeypatch):
    inject(lambda _: 0.0)
    first = measured(workspace)
    monkeypatch.setenv("DRAFTRANK_WATCH", "off")
    assert measured(workspace).session.id == first.session.id
