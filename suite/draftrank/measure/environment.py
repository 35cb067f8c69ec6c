"""The part of the fingerprint that may change between two runs on one machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import psutil

from draftrank.decoding.environment import compute_environment
from draftrank.measure.evidence import Environment

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OMP_PROC_BIND",
    "KMP_AFFINITY",
    "GOMP_CPU_AFFINITY",
)
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def read_environment(device: Literal["cpu", "cuda"]) -> Environment:  # noqa: ARG001
    """Describes how this machine is set up now."""
    affinity = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
    return Environment(
        affinity=affinity,
        memory_available_bytes=int(psutil.virtual_memory().available),
        governor=_text(_GOVERNOR),
        thread_variables={name: value for name in THREAD_VARIABLES if (value := os.environ.get(name))},
        torch_build=compute_environment().torch,
        load_average=round(os.getloadavg()[0], 2),
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
