"""What else the machine does while trials run.

Counters of the kernel and of the GPU's driver are read before and after a trial, never during it. What
they say is kept with the trial; whether it is too much is decided by `disturbance`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Literal

from draftrank.engine.environment import compute_environment
from draftrank.errors import InvalidInputError
from draftrank.measure.evidence import Conditions
from draftrank.measure.machine.counters import Counters, KernelCounters
from draftrank.measure.machine.disturbance import disturbance_of
from draftrank.measure.machine.gpu import Gpu, GpuState
from draftrank.measure.machine.processor import frequency_hz, processors_of_this_process

MIN_WATCHED_S = 0.5
"""Kernel counters tick every 10 ms on each processor: over less time than this they say too little, so
that short trials are judged together with those that follow."""
LOOK_S = 1.0
"""How long to look whether the machine is calm."""
VARIABLE = "DRAFTRANK_WATCH"


class ThisMachine:
    """Reads the machine this process runs on."""

    def __init__(self, device: Literal["cpu", "cuda"]) -> None:
        compute = compute_environment()
        self._processors = processors_of_this_process()
        self._kernel = KernelCounters()
        self._gpu = Gpu.open(compute.gpu_uuid) if device == "cuda" else None
        self.processors = self._kernel.processors
        """Processors this process may run on."""
        self.threads = min(compute.threads, self.processors)
        """Those of them that compute."""

    def counters(self) -> Counters:
        """What has happened so far."""
        return self._kernel.read()

    def frequency_hz(self) -> float | None:
        """The processors' clock now."""
        return frequency_hz(self._processors, self.threads)

    def gpu(self) -> GpuState | None:
        """The GPU now; None without one."""
        return self._gpu.state() if self._gpu else None


class Watch:
    """Reads a machine's counters around trials."""

    def __init__(self, source: ThisMachine, sleep: Callable[[float], None] = time.sleep) -> None:
        self._source, self._sleep = source, sleep
        self._before: Counters
        self._seen: Counters | None = None

    def begin(self) -> None:
        """To be called just before a trial."""
        self._before = self._source.counters()

    def end(self) -> Conditions:
        """What happened since `begin`, and in the trials before that were too short to tell.

        A trial that is itself too short gets empty conditions: the next long enough report speaks for it.
        """
        passed = self._source.counters() - self._before
        self._seen = passed if self._seen is None else self._seen + passed
        if self._seen.elapsed_s < MIN_WATCHED_S:
            return Conditions()
        seen, self._seen = self._seen, None
        return _conditions(seen, self._source)

    def start_anew(self) -> None:
        """Leaves out what was seen before, which speaks for trials that no longer count."""
        self._seen = None

    def wait_for_calm(self, most_s: float) -> bool:
        """Waits until nothing disturbs while this process rests; False when that took too long."""
        self.start_anew()
        waited = 0.0
        while waited < most_s:
            self.begin()
            self._sleep(LOOK_S)
            waited += LOOK_S
            if disturbance_of([self.end()], self._source.processors) is None:
                return True
        return False


def watching() -> bool:
    """Whether the machine is to be watched: `DRAFTRANK_WATCH=off` says no.

    That is for machines whose counters do not speak of this process, such as sandboxes that show their
    host's. Such a session keeps no conditions, and the board warns of it.

    Raises:
        InvalidInputError: the variable holds something else.
    """
    value = os.environ.get(VARIABLE) or "on"
    if value not in ("on", "off"):
        raise InvalidInputError.single(f"{value!r} is not known", field=VARIABLE, fix="set it to on or off")
    return value == "on"


def _conditions(seen: Counters, source: ThisMachine) -> Conditions:
    passed = seen.elapsed_s
    busy = seen.busy_s
    if busy is not None and busy < seen.own_s / 2:
        busy = None  # the counters leave this very process out: a sandbox's, not the machine's
    known = busy is not None
    gpu = source.gpu()
    return Conditions(
        others_cpus=None if busy is None else round(max(0.0, busy - seen.own_s) / passed, 3),
        steal=_share(seen.stolen_s, passed * source.processors) if known else None,
        quota_throttled=_share(seen.throttled_s, passed * source.threads),
        memory_stalled=_share(seen.memory_stalled_s, passed),
        frequency_hz=source.frequency_hz(),
        gpu_clock_hz=gpu.clock_hz if gpu else None,
        gpu_throttled_by=gpu.throttled_by if gpu else (),
        gpu_others=gpu.others if gpu else None,
    )


def _share(part: float | None, whole: float) -> float | None:
    return None if part is None else round(min(1.0, max(0.0, part / whole)), 4)
