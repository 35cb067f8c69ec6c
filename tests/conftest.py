"""Shared set-up: few threads for the small models, no watch, and the test helpers on the path."""

from __future__ import annotations

import os
import sys
from pathlib import Path

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
sys.path.insert(0, str(Path(__file__).parent))
