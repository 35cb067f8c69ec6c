"""What else the machine does while a trial runs, and when that is too much.

Counters of the kernel (and of the GPU's driver) are read before and after a trial, never during it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal

from draftrank.measure.evidence import Conditions

OTHERS_CPUS = 0.25
"""Processors' worth of other processes that disturb a trial."""
STEAL = 0.05
QUOTA_THROTTLED = 0.02
MEMORY_STALLED = 0.05
MIN_WATCHED_S = 0.2
"""Kernel counters tick every 10 ms: over less time than this they say too little."""

_STAT = Path("/proc/stat")


@dataclass(frozen=True, slots=True)
class _Counters:
    at: float
    machine_busy_s: float | None
    own_s: float
    stolen_s: float | None


class Watch:
    """Reads the machine's counters around trials."""

    def __init__(self, device: Literal["cpu", "cuda"]) -> None:
        self._device = device
        self._before: _Counters

    def begin(self) -> None:
        """To be called just before a trial."""
        self._before = _read()

    def end(self) -> Conditions:
        """What happened since `begin`."""
        before, after = self._before, _read()
        elapsed = after.at - before.at
        if elapsed < MIN_WATCHED_S:
            return Conditions()
        others = steal = None
        if after.machine_busy_s is not None and before.machine_busy_s is not None:
            busy = after.machine_busy_s - before.machine_busy_s - (after.own_s - before.own_s)
            others = round(max(0.0, busy / elapsed), 3)
        if after.stolen_s is not None and before.stolen_s is not None:
            share = (after.stolen_s - before.stolen_s) / (elapsed * (os.cpu_count() or 1))
            steal = round(min(1.0, max(0.0, share)), 4)
        return Conditions(others_cpus=others, steal=steal)


def disturbance_of(conditions: Conditions) -> str | None:
    """Why a trial under these conditions should not count, in words; None when it was quiet."""
    if (conditions.others_cpus or 0.0) > OTHERS_CPUS:
        return f"other processes kept {conditions.others_cpus:.1f} processors busy"
    if (conditions.steal or 0.0) > STEAL:
        return f"the hypervisor took {conditions.steal:.0%} of the processors' time"
    return None


def _read() -> _Counters:
    own = os.times()
    busy = stolen = None
    try:
        fields = _STAT.read_text().split("\n", 1)[0].split()[1:]
        ticks = [int(value) for value in fields]
        per_second = os.sysconf("SC_CLK_TCK")
        busy = (sum(ticks[:3]) + sum(ticks[5:7])) / per_second
        stolen = ticks[7] / per_second
    except (OSError, ValueError, IndexError):
        pass
    return _Counters(perf_counter(), busy, own.user + own.system, stolen)
