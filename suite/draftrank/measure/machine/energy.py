"""Joules that the machine has taken: the processor's counters (RAPL) or the GPU's (NVML), where they can be read.

RAPL counts whole processor packages, whoever uses them, and most systems let only root read it. It leaves memory out where
the processor does not count it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from draftrank.engine.environment import compute_environment
from draftrank.measure.machine.gpu import Gpu


class EnergyMeter:
    """Differences of running counters."""

    def __init__(self, device: Literal["cpu", "cuda"], *, root: Path = Path("/")) -> None:
        """Finds the counters of a device; `root` is where `sys` lies."""
        self._gpu = Gpu.open(compute_environment().gpu_uuid) if device == "cuda" else None
        zones = sorted((root / "sys/class/powercap").glob("intel-rapl:*")) if device == "cpu" else []
        # `intel-rapl:0` is a package, `intel-rapl:0:0` a part that the package counts too.
        self._zones = [zone for zone in zones if zone.name.count(":") == 1]
        self._before = self._read()

    def begin(self) -> None:
        """To be called just before what is measured."""
        self._before = self._read()

    def end(self) -> float | None:
        """Joules since `begin`; None where the machine does not tell."""
        before, now = self._before, self._read()
        if before is None or now is None:
            return None
        passed = 0.0
        for (was, wraps), (is_, _) in zip(before, now, strict=True):
            passed += is_ - was if is_ >= was else is_ - was + wraps
        return round(passed, 3)

    def _read(self) -> list[tuple[float, float]] | None:
        """Of each counter: joules so far, and at how many it begins anew."""
        if self._gpu is not None:
            joules = self._gpu.energy_j()
            return None if joules is None else [(joules, 0.0)]
        try:
            found = [
                (_joules(zone / "energy_uj"), _joules(zone / "max_energy_range_uj")) for zone in self._zones
            ]
        except (OSError, ValueError):
            return None
        return found or None


def _joules(file: Path) -> float:
    return int(file.read_text()) / 1e6
