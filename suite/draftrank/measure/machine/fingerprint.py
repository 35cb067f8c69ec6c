"""Where a session ran, and the class of machines its numbers speak for.

On CUDA the class is the name of the device. On CPU it is the processor's name, its best instruction set for
matrix products, the number of processors in use and, where they differ from that number, torch's threads.
Processors in use are those that the process may run on, but no more than its container's quota, rounded up: a
quota of 1.5 of 64 processors gives `2c`. Ranks never cross classes.
"""

from __future__ import annotations

import math
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from draftrank.engine.environment import compute_environment
from draftrank.measure.machine.cgroup import ControlGroups
from draftrank.measure.machine.processor import cpu_info, processors_of_this_process
from draftrank.measure.records import Machine

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "gguf", "llama_cpp_python")
_CPU_TIERS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "asimd", "neon")


def read_machine(
    device: Literal["cpu", "cuda"], *, threads: int | None = None, root: Path = Path("/")
) -> Machine:
    """Describes this machine as seen by this process.

    `threads` are those that compute, where another process than this one does; `root` is where `proc` and `sys` lie.
    """
    import psutil  # not for `is_this_machine`

    compute = compute_environment()
    cpu, cores, cpu_words = _processor(root)
    gpu = compute.gpu if device == "cuda" else None
    computing = threads or compute.threads
    suffix = "" if computing == cores else f" {computing}t"
    return Machine(
        machine_class=_slug(f"{cpu_words}{suffix}" if gpu is None else gpu),
        cpu=cpu,
        cores=cores,
        threads=computing,
        memory_bytes=int(psutil.virtual_memory().total),
        gpu=gpu,
        platform=platform.platform(terse=True) + " " + platform.machine(),
        python=platform.python_version(),
        packages={name: found for name in PACKAGES if (found := package_version(name))},
    )


def is_this_machine(machine_class: str, *, root: Path = Path("/")) -> bool:
    """Whether a class is this machine's, on its processor with any number of threads or on one of its GPUs.

    It does not ask torch, so that commands which only read records stay light.
    """
    own = re.escape(_slug(_processor(root)[2]))
    return re.fullmatch(rf"{own}(?:-\d+t)?", machine_class) is not None or machine_class in _gpu_classes(root)


def _processor(root: Path) -> tuple[str, int, str]:
    """The processor's name, how many of it are in use, and the words of its class."""
    info = cpu_info(root)
    cpu = info.get("model name") or platform.processor() or platform.machine()
    quota = ControlGroups.of_this_process(root).quota_cpus()
    cores = cores_in_use(len(processors_of_this_process()), quota)
    flags = set(info.get("flags", info.get("Features", "")).split())
    tier = next((tier for tier in _CPU_TIERS if tier in flags), "generic")
    return cpu, cores, f"{cpu} {tier} {cores}c"


def _gpu_classes(root: Path) -> set[str]:
    """Classes of the GPUs that Nvidia's driver lists."""
    found = set()
    for file in (root / "proc/driver/nvidia/gpus").glob("*/information"):
        try:
            text = file.read_text()
        except OSError:
            continue
        found |= {_slug(model.strip()) for model in re.findall(r"^Model:(.*)$", text, re.MULTILINE)}
    return found


def cores_in_use(affinity: int, quota_cpus: float | None) -> int:
    """Processors a process can keep busy: those it may run on, but no more than its quota, rounded up."""
    return affinity if quota_cpus is None else max(1, min(affinity, math.ceil(quota_cpus)))


def package_version(name: str) -> str | None:
    """An installed package's version; None when it is absent."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _slug(text: str) -> str:
    cleaned = re.sub(r"\((?:r|tm)\)", " ", text.lower())
    cleaned = re.sub(r"\b(?:processor|cpu|with|core)\b|@.*?ghz", " ", cleaned)
    return re.sub(r"[^a-z0-9]+", "-", cleaned).strip("-")[:80]
