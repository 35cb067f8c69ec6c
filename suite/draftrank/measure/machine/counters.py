"""The kernel's running counters: what the machine has done so far, and for whom.

They only grow, so two readings tell what happened in between. Reading costs well under a millisecond on
small machines and is never done inside a timed region.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from draftrank.measure.machine.cgroup import ControlGroups
from draftrank.measure.machine.processor import processors_of_this_process


@dataclass(frozen=True, slots=True)
class Counters:
    """One reading, or the difference of two. Seconds of processors are summed over those that this
    process may use; None: not readable here."""

    elapsed_s: float
    """The clock."""
    own_s: float
    """Processor seconds of this process, all its threads. Its children count as others: all decoding is
    done in this process, so whatever a child computes meanwhile takes processors away from it."""
    busy_s: float | None = None
    """Processor seconds that were not idle."""
    stolen_s: float | None = None
    """Processor seconds that the hypervisor gave to other guests."""
    throttled_s: float | None = None
    """Processor seconds for which the container's quota stopped its processes."""
    memory_stalled_s: float | None = None
    """Seconds in which some task of the machine waited for memory."""

    def __add__(self, other: Counters) -> Counters:
        return self._combine(other, operator.add)

    def __sub__(self, other: Counters) -> Counters:
        return self._combine(other, operator.sub)

    def _combine(self, other: Counters, operation: Callable[[Any, Any], Any]) -> Counters:
        pairs = zip(astuple(self), astuple(other), strict=True)
        values: list[Any] = [None if None in pair else operation(*pair) for pair in pairs]
        return Counters(*values)


class KernelCounters:
    """Reads them from Linux; elsewhere all but the process's own time is None."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._stat = root / "proc/stat"
        self._pressure = root / "proc/pressure/memory"
        self._groups = ControlGroups.of_this_process(root)
        self._lines = {f"cpu{number}" for number in processors_of_this_process()}
        self._ticks_per_s = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100

    @property
    def processors(self) -> int:
        """Processors this process may run on."""
        return max(1, len(self._lines))

    def read(self) -> Counters:
        """The counters now."""
        own = os.times()
        busy, stolen = self._processor_seconds() or (None, None)
        return Counters(
            perf_counter(),
            own.user + own.system,
            busy,
            stolen,
            self._groups.throttled_s(),
            self._memory_stalled_s(),
        )

    def _processor_seconds(self) -> tuple[float, float] | None:
        """Busy and stolen. Fields of a line: user, nice, system, idle, iowait, irq, softirq, steal, …; a
        guest's time is part of user and nice."""
        busy = stolen = 0
        try:
            lines = [line.split() for line in self._stat.read_text().splitlines()]
            found = [list(map(int, values)) for name, *values in lines if name in self._lines]
            for ticks in found:
                busy += sum(ticks[:3]) + sum(ticks[5:7])
                stolen += ticks[7]
        except (OSError, ValueError, IndexError):
            return None
        return (busy / self._ticks_per_s, stolen / self._ticks_per_s) if found else None

    def _memory_stalled_s(self) -> float | None:
        """From a line such as `some avg10=0.00 avg60=0.00 avg300=0.00 total=1234` (microseconds)."""
        try:
            some = self._pressure.read_text().splitlines()[0]
            return int(some.rsplit("total=", 1)[1]) / 1e6
        except (OSError, ValueError, IndexError):
            return None
