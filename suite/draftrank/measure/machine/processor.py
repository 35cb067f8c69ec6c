"""What the operating system tells of the processors: their instructions, clocks and governor."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

INSTRUCTION_SETS = (
    "amx_tile", "amx_bf16", "amx_int8", "avx512_fp16", "avx512_bf16", "avx512_vnni", "avx512f", "avx_vnni",
    "avx2", "fma", "f16c", "sve2", "sve", "i8mm", "bf16", "asimddp", "asimdhp", "asimd", "neon",
)  # fmt: skip
"""Those that decide how fast matrices are multiplied, as `/proc/cpuinfo` spells them (x86, then Arm)."""

_CPUS = "sys/devices/system/cpu"


def processors_of_this_process() -> tuple[int, ...]:
    """Numbers of the processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def cpu_info(root: Path = Path("/")) -> dict[str, str]:
    """The fields of the first processor in `/proc/cpuinfo`; empty where there is none."""
    return next(iter(_cpu_infos(root)), {})


def instruction_sets(info: Mapping[str, str]) -> tuple[str, ...]:
    """Those of `INSTRUCTION_SETS` that a processor has."""
    flags = set(info.get("flags", info.get("Features", "")).split())
    return tuple(name for name in INSTRUCTION_SETS if name in flags)


def governor(processor: int, root: Path = Path("/")) -> str | None:
    """Policy of a processor's frequency; None where the system does not let one choose."""
    try:
        return (root / f"{_CPUS}/cpu{processor}/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return None


def frequency_max_hz(processors: tuple[int, ...], root: Path = Path("/")) -> float | None:
    """Highest frequency that any of these processors can reach."""
    return max(_frequencies_hz(processors, "cpuinfo_max_freq", root), default=None)


def frequency_hz(processors: tuple[int, ...], busy: int, root: Path = Path("/")) -> float | None:
    """Mean frequency of the processors in use now: of those this process may run on, as many of the fastest as
    compute, since idle ones clock down."""
    found = _frequencies_hz(processors, "scaling_cur_freq", root)
    if not found:
        infos = _cpu_infos(root)
        # A guest is shown a constant that says nothing of the clock.
        if any("hypervisor" in info.get("flags", "").split() for info in infos[:1]):
            return None
        wanted = {str(number) for number in processors}
        found = [
            float(info["cpu MHz"]) * 1e6
            for info in infos
            if info.get("processor") in wanted and "cpu MHz" in info
        ]
    fastest = sorted(found, reverse=True)[: max(1, busy)]
    return sum(fastest) / len(fastest) if fastest else None


def _frequencies_hz(processors: tuple[int, ...], file: str, root: Path) -> list[float]:
    found = []
    for number in processors:
        try:
            found.append(int((root / f"{_CPUS}/cpu{number}/cpufreq/{file}").read_text()) * 1e3)
        except (OSError, ValueError):
            continue
    return found


def _cpu_infos(root: Path) -> list[dict[str, str]]:
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return []
    blocks = (block.splitlines() for block in text.strip().split("\n\n"))
    pairs = ([line.split(":", 1) for line in block if ":" in line] for block in blocks)
    return [{name.strip(): value.strip() for name, value in block} for block in pairs]
