"""What `draftrank doctor` says of the machine: how it is set up, and whether it is calm now."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from draftrank.catalog.backend import Backend, Device

MIN_MEMORY_BYTES = 4 << 30
GIB = 1 << 30
Status = Literal["ok", "warning", "absent", "missing"]
"""`absent` may stay so; `missing` may not."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, and what to do about it."""

    what: str
    status: Status
    found: str
    fix: str | None = None

    @classmethod
    def of(cls, what: str, fine: bool, found: str, fix: str, otherwise: Status = "warning") -> Finding:
        """`fix` is what to do where it is not fine."""
        return cls(what, "ok" if fine else otherwise, found, None if fine else fix)


def look_at_machine() -> Iterator[Finding]:
    """Looks for a second, so that the counters tell of now and not of the last minutes."""
    from draftrank.engine.environment import compute_environment
    from draftrank.measure.machine.environment import read_environment
    from draftrank.measure.machine.fingerprint import read_machine

    compute = compute_environment()
    device: Device = "cuda" if compute.gpu else "cpu"
    machine, environment = read_machine(device), read_environment(device)
    sets = ", ".join(environment.instruction_sets) or "no vector instructions known"
    yield Finding("processor", "ok", f"{machine.cpu}, {machine.cores} cores, {sets}")
    yield Finding("class", "ok", machine.machine_class)
    yield from _backends(device)
    yield Finding(
        "torch build",
        "ok",
        f"{environment.torch_build}, {environment.interop_threads} threads between operations",
    )
    yield _threads(machine.threads, machine.cores, environment.thread_variables)
    yield _affinity(environment.affinity)
    yield from _container(environment.quota_cpus, environment.memory_limit_bytes, machine.threads)
    yield _governor(environment.governor, environment.frequency_max_hz)
    yield _memory(environment.memory_available_bytes, environment.memory_limit_bytes, machine.memory_bytes)
    if compute.gpu:
        facts = [compute.gpu]
        if environment.gpu_driver:
            facts.append(f"driver {environment.gpu_driver}")
        if environment.gpu_power_limit_w:
            facts.append(f"power limit {environment.gpu_power_limit_w:.0f} W")
        if environment.gpu_clock_max_hz:
            facts.append(f"up to {environment.gpu_clock_max_hz / 1e9:.2f} GHz")
        yield Finding("gpu", "ok", ", ".join(facts))
    else:
        yield Finding("gpu", "ok", "none; runs use the CPU")
    yield from _calm(device, environment.load_average, machine.cores)


def _backends(device: Device) -> Iterator[Finding]:
    """Which backends can be used here and why not, and which one `--backend auto` takes."""
    from draftrank.engine.backends.choice import FASTEST_FIRST, advantage, fastest_dtype, instructions_here
    from draftrank.engine.backends.registry import why_not_here

    reasons = {backend: why_not_here(backend, device) for backend in get_args(Backend)}
    for backend, reason in reasons.items():
        told = (
            f"in {fastest_dtype(backend, device)}"
            if backend in FASTEST_FIRST
            else "for targets that are GGUF files"
        )
        yield Finding(f"backend {backend}", "absent" if reason else "ok", reason or told)
    first = next(backend for backend in FASTEST_FIRST if reasons[backend] is None)
    dtype = fastest_dtype(first, device)
    yield Finding.of(
        "auto",
        first != "transformers",
        f"backend {first}, {dtype} for targets and drafts that it can run: {advantage(first, dtype)}; transformers runs the "
        f"others; instructions {instructions_here()}",
        f"{reasons['cpp' if device == 'cpu' else 'cuda-graphs']}",
    )


def _threads(threads: int, cores: int, variables: dict[str, str]) -> Finding:
    set_by = ", ".join(f"{name}={value}" for name, value in variables.items())
    found = f"torch computes with {threads}" + (f" ({set_by})" if set_by else "")
    return Finding.of("threads", threads <= cores, found, f"set OMP_NUM_THREADS={cores}")


def _affinity(affinity: tuple[int, ...]) -> Finding:
    every = os.cpu_count() or 1
    count = len(affinity) or every
    bound = count < every
    return Finding("affinity", "ok", f"bound to {count} of {every} processors" if bound else "not bound")


def _container(quota: float | None, memory: int | None, threads: int) -> Iterator[Finding]:
    if quota is None:
        yield Finding("quota", "ok", "none")
    else:
        yield Finding.of(
            "quota",
            threads <= quota,
            f"the container may use {quota:g} processors",
            f"set OMP_NUM_THREADS={max(1, int(quota))}, or raise the container's limit: with more threads than that, the "
            "quota stops them within a step",
        )
    if memory is not None:
        yield Finding("memory limit", "ok", f"the container may hold {memory / GIB:.1f} GiB")


def _governor(governor: str | None, frequency_max_hz: float | None) -> Finding:
    top = f", up to {frequency_max_hz / 1e9:.2f} GHz" if frequency_max_hz else ""
    if governor is None:
        return Finding("governor", "ok", f"not readable here{top}")
    fix = "`sudo cpupower frequency-set -g performance` keeps the clock constant"
    return Finding.of("governor", governor == "performance", governor + top, fix)


def _memory(available: int | None, limit: int | None, total: int) -> Finding:
    free = min(value for value in (available, limit, total) if value is not None)
    return Finding.of(
        "memory",
        free >= MIN_MEMORY_BYTES,
        f"{free / GIB:.1f} GiB free of {total / GIB:.1f}",
        "close other programs: the default target with its drafts needs 4 GiB",
    )


def _calm(device: Device, load_average: float | None, cores: int) -> Iterator[Finding]:
    from draftrank.measure.machine.conditions import LOOK_S, ThisMachine, Watch, watching
    from draftrank.measure.machine.disturbance import disturbances

    watch = Watch(ThisMachine(device))
    watch.begin()
    time.sleep(LOOK_S)
    now = watch.end()
    if now.others_cpus is None:
        yield Finding("load", "warning", "not readable here", "watch the machine yourself while you measure")
    else:
        average = "" if load_average is None else f", load average {load_average:.2f}"
        found = disturbances([now.model_copy(update={"frequency_hz": None})], cores)
        busy = f"others keep {now.others_cpus:.2f} of {cores} processors busy{average}"
        loaded = next((one for one in found if one.rule.id == "others"), None)
        yield Finding("load", "warning" if loaded else "ok", busy, loaded.rule.fix if loaded else None)
        for one in found:
            if one is not loaded:
                yield Finding(one.rule.kind, "warning", one.reason, one.rule.fix)
    if not watching():
        yield Finding(
            "watch",
            "warning",
            "switched off by DRAFTRANK_WATCH",
            "unset it to have sessions watch the machine",
        )
