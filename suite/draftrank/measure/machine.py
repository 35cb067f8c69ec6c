"""Where a session ran, and the class of machines its numbers speak for.

Rule of the class: on CUDA the device's name; on CPU the processor's name, its best instruction set
for matrices, the processors in use and, where they are fewer or more, torch's threads. Ranks never
cross classes.
"""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import psutil

from draftrank.decoding.environment import compute_environment
from draftrank.measure.records import Machine

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "gguf")
_CPU_TIERS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "asimd", "neon")


def read_machine(device: Literal["cpu", "cuda"]) -> Machine:
    """Describes this machine as seen by this process."""
    compute = compute_environment()
    info = _cpu_info()
    cpu = info.get("model name") or platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpu = compute.gpu if device == "cuda" else None
    if gpu is not None:
        machine_class = _slug(gpu)
    else:
        flags = set(info.get("flags", info.get("Features", "")).split())
        tier = next((tier for tier in _CPU_TIERS if tier in flags), "generic")
        threads = "" if compute.threads == cores else f" {compute.threads}t"
        machine_class = _slug(f"{cpu} {tier} {cores}c{threads}")
    return Machine(
        machine_class=machine_class,
        cpu=cpu,
        cores=cores,
        threads=compute.threads,
        memory_bytes=int(psutil.virtual_memory().total),
        gpu=gpu,
        platform=platform.platform(terse=True) + " " + platform.machine(),
        python=platform.python_version(),
        packages={name: found for name in PACKAGES if (found := package_version(name))},
    )


def package_version(name: str) -> str | None:
    """An installed package's version; None when it is absent."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_info() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    first = text.split("\n\n", 1)[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _slug(text: str) -> str:
    cleaned = re.sub(r"\((?:r|tm)\)", " ", text.lower())
    cleaned = re.sub(r"\b(?:processor|cpu|with|core)\b|@.*?ghz", " ", cleaned)
    return re.sub(r"[^a-z0-9]+", "-", cleaned).strip("-")[:80]
