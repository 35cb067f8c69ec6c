"""What runs on which family of models: the table that `ci/architectures.py` measured."""

from __future__ import annotations

import json
from pathlib import Path

FILE = Path(__file__).with_suffix(".json")
"""Written by the script: for every family and column None where it ran, else the reason why not."""


def ran_on_families() -> dict[str, dict[str, str | None]]:
    """By family and column: None where it ran on a tiny model, else why not."""
    found: dict[str, dict[str, str | None]] = json.loads(FILE.read_text("utf-8"))["families"]
    return found
