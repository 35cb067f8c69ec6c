"""What the driver of an NVIDIA GPU tells of its clocks, its limits and its users.

NVML, the driver's own library, is called directly: it comes with every driver, needs no package and
answers in microseconds, where starting `nvidia-smi` takes longer than a trial. Whatever it does not
answer is None. Names and numbers are those of NVIDIA's `nvml.h`.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Any

THROTTLE_REASONS = {
    0x004: "power limit",
    0x008: "hardware slowdown",
    0x010: "synchronised boost",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "hardware power brake",
}
"""Bits that hold the clock below what was asked for. Left out: being idle, and clocks that a user set."""

_LIBRARY = "libnvidia-ml.so.1"
_SM_CLOCK = 1
_MAX_PROCESSES = 256


@dataclass(frozen=True, slots=True)
class GpuLimits:
    """What does not change while a session runs."""

    driver: str | None
    power_limit_w: float | None
    clock_max_hz: float | None


@dataclass(frozen=True, slots=True)
class GpuState:
    """How the GPU is now."""

    clock_hz: float | None
    throttled_by: tuple[str, ...]
    others: int | None
    """Other processes that compute on it."""


class _Process(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used_memory", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class Gpu:
    """One GPU, asked through NVML."""

    def __init__(self, library: ctypes.CDLL, device: ctypes.c_void_p) -> None:
        self._library, self._device = library, device

    @classmethod
    def open(cls, uuid: str | None, library: str = _LIBRARY) -> Gpu | None:
        """The GPU of this identity (`GPU-…`); the first one without; None where NVML does not answer."""
        try:
            nvml = ctypes.CDLL(library)
            if nvml.nvmlInit_v2() != 0:
                return None
            device = ctypes.c_void_p()
            if uuid is not None:
                failed = nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(device))
            else:
                failed = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(0), ctypes.byref(device))
        except (OSError, AttributeError):
            return None
        return None if failed else cls(nvml, device)

    def limits(self) -> GpuLimits:
        """Driver, power limit and highest clock."""
        driver = ctypes.create_string_buffer(80)
        told = self._call("nvmlSystemGetDriverVersion", driver, ctypes.c_uint(80))
        milliwatts = self._number("nvmlDeviceGetEnforcedPowerLimit", ctypes.c_uint())
        megahertz = self._number("nvmlDeviceGetMaxClockInfo", ctypes.c_uint(), ctypes.c_uint(_SM_CLOCK))
        return GpuLimits(
            driver.value.decode("ascii", "replace") if told else None,
            None if milliwatts is None else milliwatts / 1e3,
            None if megahertz is None else megahertz * 1e6,
        )

    def state(self) -> GpuState:
        """Clock, what holds it down, and who else computes."""
        megahertz = self._number("nvmlDeviceGetClockInfo", ctypes.c_uint(), ctypes.c_uint(_SM_CLOCK))
        bits = self._number("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong()) or 0
        reasons = tuple(reason for bit, reason in THROTTLE_REASONS.items() if bits & bit)
        return GpuState(None if megahertz is None else megahertz * 1e6, reasons, self._others())

    def energy_j(self) -> float | None:
        """Joules that it has taken since the driver was loaded; None where it does not count them."""
        millijoules = self._number("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong())
        return None if millijoules is None else millijoules / 1e3

    def _others(self) -> int | None:
        count, found = ctypes.c_uint(_MAX_PROCESSES), (_Process * _MAX_PROCESSES)()
        name = "nvmlDeviceGetComputeRunningProcesses_v3"
        if not self._call(name, self._device, ctypes.byref(count), found) or not count.value:
            return None  # not even this process is seen, as in some containers
        pids = {found[index].pid for index in range(count.value)}
        # A container's driver may number processes as the host does: then one of them is this one.
        return len(pids - {os.getpid()}) if os.getpid() in pids else len(pids) - 1

    def _number(self, name: str, into: Any, *arguments: Any) -> int | None:
        told = self._call(name, self._device, *arguments, ctypes.byref(into))
        return int(into.value) if told else None

    def _call(self, name: str, *arguments: Any) -> bool:
        """Whether the library knows the function and answered."""
        function = getattr(self._library, name, None)
        return function is not None and function(*arguments) == 0
