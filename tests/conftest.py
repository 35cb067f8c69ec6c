"""Shared set-up: few threads for the small models, nothing that depends on the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# What steers draftrank or the look of its output outside must not do so in the tests.
_STEERING = (
    "COLUMNS",
    "TERMINAL_WIDTH",
    "FORCE_COLOR",
    "NO_COLOR",
    "PY_COLORS",
    "TTY_COMPATIBLE",
    "GITHUB_ACTIONS",
    "PYTHONIOENCODING",
)
for name in list(os.environ):
    if name in _STEERING or (name.startswith("DRAFTRANK_") and not name.startswith("DRAFTRANK_TEST_")):
        del os.environ[name]
# On a busy machine an example may take any time.
settings.register_profile("draftrank", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("nightly", settings.get_profile("draftrank"), max_examples=1000)
settings.load_profile("draftrank")
worker = os.environ.get("PYTEST_XDIST_WORKER")
if worker is not None and hasattr(os, "sched_setaffinity"):
    # A processor each: two torch processes that want the same ones slow each other many times over.
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[int(worker.removeprefix("gw")) % len(processors)]})
    os.environ["OMP_NUM_THREADS"] = "1"  # not what it inherits from the process that started it
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Tests share their machine with others; what they say of the watch, they say with counters of their own.
os.environ["DRAFTRANK_WATCH"] = "off"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ["TRITON_INTERPRET"] = (
        "1"  # kernels for a GPU run in Triton's interpreter; read when it is imported
    )


@pytest.fixture(scope="session", autouse=True)
def synchronous() -> str:
    """How long commits to a store wait for the disk. In the tests they do not: together they would wait for minutes."""
    from draftrank.store import database

    asked, database.SYNCHRONOUS = database.SYNCHRONOUS, "OFF"
    return asked
