"""The part of the fingerprint that may change between two runs on one machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import psutil
from pydantic import TypeAdapter, ValidationError

from draftrank.catalog.git import git
from draftrank.engine.environment import compute_environment
from draftrank.measure.evidence import Environment, JobUrl
from draftrank.measure.machine.cgroup import ControlGroups
from draftrank.measure.machine.gpu import Gpu
from draftrank.measure.machine.processor import (
    cpu_info,
    frequency_max_hz,
    governor,
    instruction_sets,
    processors_of_this_process,
)

THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "OMP_WAIT_POLICY", "OMP_DYNAMIC", "MKL_NUM_THREADS",
    "MKL_ENABLE_INSTRUCTIONS", "OPENBLAS_NUM_THREADS", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "KMP_AFFINITY",
    "KMP_BLOCKTIME", "GOMP_CPU_AFFINITY", "GOMP_SPINCOUNT", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip
"""Environment variables that steer threads, instruction sets and devices."""
_JOB_URL: TypeAdapter[str] = TypeAdapter(JobUrl)


def read_environment(
    device: Literal["cpu", "cuda"], workspace: Path | None = None, *, root: Path = Path("/")
) -> Environment:
    """Describes how this machine is set up now, and the git state of a workspace; what cannot be read is None.

    `root` is where `proc` and `sys` lie.
    """
    compute = compute_environment()
    groups = ControlGroups.of_this_process(root)
    affinity = processors_of_this_process()
    gpu = Gpu.open(compute.gpu_uuid) if device == "cuda" else None
    limits = gpu.limits() if gpu else None
    commit, dirty = git_state(workspace) if workspace is not None else (None, None)
    return Environment(
        instruction_sets=instruction_sets(cpu_info(root)),
        affinity=affinity,
        quota_cpus=groups.quota_cpus(),
        memory_limit_bytes=groups.memory_limit_bytes(),
        memory_available_bytes=int(psutil.virtual_memory().available),
        governor=governor(affinity[0], root),
        frequency_max_hz=frequency_max_hz(affinity, root),
        interop_threads=compute.interop_threads,
        thread_variables={name: value for name in THREAD_VARIABLES if (value := os.environ.get(name))},
        torch_build=f"{compute.torch} {compute.cpu_capability}",
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        gpu_driver=limits.driver if limits else None,
        gpu_power_limit_w=limits.power_limit_w if limits else None,
        gpu_clock_max_hz=limits.clock_max_hz if limits else None,
        suite_commit=commit,
        suite_dirty=dirty,
        job_url=job_url(os.environ),
    )


def job_url(variables: Mapping[str, str]) -> str | None:
    """The page of the job that this process is part of, by what GitHub's and GitLab's runners tell it; None outside of
    such jobs, or where what they tell is no plain https address."""
    if variables.get("GITHUB_ACTIONS") == "true":
        server, repository, run = (
            variables.get(name, "") for name in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID")
        )
        url = f"{server}/{repository}/actions/runs/{run}" if repository and run else ""
    else:
        url = variables.get("CI_JOB_URL", "")
    try:
        return _JOB_URL.validate_python(url)
    except ValidationError:
        return None


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """The commit a folder is at, and whether it holds changes that are not committed (new files too); None for both
    without commits, or without git."""
    commit = git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return None, None
    # What a run leaves there is no change of what it measures.
    changes = git(folder, "status", "--porcelain", "--", ".", ":(exclude).draftrank")
    return commit, None if changes is None else bool(changes)
