"""Shared set-up: few threads for the small models, no watch, and the test helpers on the path."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Beside other tests, one thread each: two processes that want all processors slow each other many times over.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
# Tests share their machine with others; what they say of the watch, they say with counters of their own.
os.environ["DRAFTRANK_WATCH"] = "off"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))
