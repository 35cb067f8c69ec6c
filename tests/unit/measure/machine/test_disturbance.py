"""The watch over a session: what counters become, and when a stretch is disturbed."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrank.errors import InvalidInputError
from draftrank.measure.evidence import Conditions
from draftrank.measure.machine.conditions import MIN_WATCHED_S, ThisMachine, Watch, watching
from draftrank.measure.machine.counters import Counters, KernelCounters
from draftrank.measure.machine.disturbance import RULES, disturbance_of, disturbances
from draftrank.measure.machine.gpu import GpuState
from draftrank.measure.machine.processor import processors_of_this_process
from machine_roots import container, write


class Script:
    """A machine whose counters go on by what the test says: (seconds, busy, own, …) of each window."""

    def __init__(self, *windows, processors=2, threads=2, frequency=None, gpu=None):
        self.processors, self.threads = processors, threads
        self._at = Counters(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        self._windows = [Counters(**window) for window in windows]
        self._frequency, self._gpu = frequency, gpu
        self._reads = 0

    def counters(self):
        if self._reads % 2:
            self._at = self._at + self._windows.pop(0)
        self._reads += 1
        return self._at

    def frequency_hz(self):
        return self._frequency

    def gpu(self):
        return self._gpu


def seen(source, windows=1):
    watch = Watch(source)
    found = []
    for _ in range(windows):
        watch.begin()
        found.append(watch.end())
    return found


def window(elapsed_s, others=0.0, own=1.0, **more):
    """A window in which this process used `own` processors and others used `others`."""
    values = {"stolen_s": 0.0, "throttled_s": 0.0, "memory_stalled_s": 0.0} | more
    return {"elapsed_s": elapsed_s, "own_s": own * elapsed_s, "busy_s": (own + others) * elapsed_s, **values}


def test_counters_become_shares():
    source = Script(
        window(2.0, others=0.5, stolen_s=0.4, throttled_s=1.0, memory_stalled_s=0.2),
        frequency=2.5e9,
        gpu=GpuState(1.2e9, ("hardware slowdown",), 1),
    )
    assert seen(source) == [
        Conditions(
            others_cpus=0.5,
            steal=0.1,
            quota_throttled=0.25,
            memory_stalled=0.1,
            frequency_hz=2.5e9,
            gpu_clock_hz=1.2e9,
            gpu_throttled_by=("hardware slowdown",),
            gpu_others=1,
        )
    ]


def test_short_trials_are_judged_together():
    short = MIN_WATCHED_S / 4
    found = seen(Script(*[window(short, others=1.0)] * 9), 9)
    empty, full = (
        Conditions(),
        Conditions(others_cpus=1.0, steal=0.0, quota_throttled=0.0, memory_stalled=0.0),
    )
    assert found == [empty, empty, empty, full, empty, empty, empty, full, empty]
    assert disturbance_of(found[:4], 2).rule.id == "others"


def test_what_was_seen_before_a_new_attempt_does_not_count():
    watch = Watch(Script(window(0.4, others=2.0), window(0.6)))
    watch.begin()
    watch.end()
    watch.start_anew()
    watch.begin()
    assert watch.end().others_cpus == 0.0


@given(st.lists(st.floats(0.001, 0.2), min_size=1, max_size=40), st.floats(0.0, 0.02))
def test_noise_of_whole_ticks_never_disturbs(lengths, housekeeping):
    """Each reading is cut to whole ticks of 10 ms on each processor, as the kernel's are."""
    now = [0.0]

    class Ticking(Script):
        def counters(self):
            ticks = int(now[0] * (2.0 + housekeeping) * 100) / 100
            return Counters(now[0], now[0] * 2.0, ticks, 0.0, 0.0, 0.0)

    watch = Watch(Ticking())
    found = []
    for length in lengths:
        watch.begin()
        now[0] += length
        found.append(watch.end())
        now[0] += 0.003
    assert disturbance_of(found, 2) is None


def test_a_sandbox_that_leaves_this_process_out_is_not_believed():
    nothing = window(2.0) | {"busy_s": 0.0}
    assert seen(Script(nothing))[0].others_cpus is None
    assert seen(Script(nothing))[0].steal is None


def test_what_cannot_be_read_is_none():
    blind = {"elapsed_s": 2.0, "own_s": 1.0}
    assert seen(Script(blind)) == [Conditions()]


def test_waiting_ends_when_it_is_calm():
    slept = []
    busy, calm = window(1.0, others=1.0, own=0.0), window(1.0, own=0.0)
    watch = Watch(Script(busy, busy, calm, busy, busy, busy), sleep=slept.append)
    assert watch.wait_for_calm(10)
    assert len(slept) == 3
    assert not watch.wait_for_calm(3)
    assert len(slept) == 6


BROKEN = {
    "others": (Conditions(others_cpus=1.9), "kept 1.9 of 4 processors busy"),
    "gpu-shared": (Conditions(gpu_others=2), "2 other processes"),
    "steal": (Conditions(steal=0.2), "hypervisor gave 20%"),
    "memory": (Conditions(memory_stalled=0.3), "waited for memory 30%"),
    "quota": (Conditions(quota_throttled=0.4), "quota stopped its processes 40%"),
    "gpu-clock": (
        Conditions(gpu_throttled_by=("power limit", "hardware slowdown")),
        r"\(hardware slowdown\)",
    ),
    "clock": (Conditions(frequency_hz=2.0e9), "fell from 3.00 to 2.00 GHz"),
}
CALM = Conditions(
    others_cpus=0.2, steal=0.03, memory_stalled=0.01, quota_throttled=0.0, frequency_hz=3.0e9, gpu_others=0,
    gpu_clock_hz=1.5e9, gpu_throttled_by=("power limit",),
)  # fmt: skip


def test_every_rule_has_a_case_and_an_explanation():
    assert [rule.id for rule in RULES] == list(BROKEN)
    assert all(len(rule.meaning) > 40 and rule.fix for rule in RULES)


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_says_why(rule):
    import re

    conditions, reason = BROKEN[rule]
    (found,) = disturbances([CALM, None, conditions], 4)
    assert found.rule.id == rule
    assert re.search(reason, found.reason)


def test_a_calm_stretch_breaks_none():
    assert disturbances([CALM, CALM], 4) == []
    assert disturbances([None, Conditions()], 4) == []
    assert disturbance_of([], 4) is None


def test_a_large_machine_may_keep_house():
    busy = Conditions(others_cpus=1.5)
    assert disturbance_of([busy], 128) is None
    assert disturbance_of([busy], 16) is not None


def test_the_clock_of_the_gpu_is_compared_within_the_stretch():
    found = disturbance_of([Conditions(gpu_clock_hz=1.9e9), Conditions(gpu_clock_hz=1.2e9)], 4)
    assert found.rule.id == "clock"


STAT = "cpu  1 1 1 1 1 1 1 1 0 0\n{}intr 5\n"


def test_the_kernels_counters(tmp_path):
    line = "cpu{} 100 10 50 9000 70 3 7 20 90 0\n"
    everyone = "".join(line.format(number) for number in range(4096))
    root = container(tmp_path, "v2", {"user.slice/job.scope/cpu.stat": "throttled_usec 4000000\n"})
    write(
        root,
        {
            "proc/stat": STAT.format(everyone),
            "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\nfull total=9\n",
        },
    )
    found = KernelCounters(root).read()
    processors = len(processors_of_this_process())
    # Waiting for a disk is idle time; a guest's time is part of the user's.
    assert found.busy_s == pytest.approx(1.70 * processors)
    assert found.stolen_s == pytest.approx(0.20 * processors)
    assert (found.throttled_s, found.memory_stalled_s) == (4.0, 2.5)


@pytest.mark.parametrize("files", [{}, {"proc/stat": "cpu0 a b\n", "proc/pressure/memory": ""}])
def test_a_kernel_without_counters(tmp_path, files):
    found = KernelCounters(write(tmp_path, files)).read()
    assert (found.busy_s, found.stolen_s, found.throttled_s, found.memory_stalled_s) == (None,) * 4
    assert found.own_s > 0


BURN = "while True: pass"


def test_a_real_process_beside_this_one_is_seen():
    """Although this process started it: what a child computes is not decoding."""
    watch = Watch(ThisMachine("cpu"))
    burner = subprocess.Popen([sys.executable, "-c", BURN])
    try:
        time.sleep(0.2)  # it starts
        watch.begin()
        time.sleep(1.0)
        conditions = watch.end()
    finally:
        burner.kill()
        burner.wait()
    if conditions.others_cpus is None:
        pytest.skip("this system shows no counters of processors")
    assert disturbance_of([conditions], 2).rule.id == "others"


def test_the_variable_that_switches_the_watch_off(monkeypatch):
    for value, expected in {"off": False, "on": True, "": True}.items():
        monkeypatch.setenv("DRAFTRANK_WATCH", value)
        assert watching() is expected
    monkeypatch.setenv("DRAFTRANK_WATCH", "maybe")
    with pytest.raises(InvalidInputError, match="DRAFTRANK_WATCH"):
        watching()
