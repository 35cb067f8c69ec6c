"""One thing that `draftrank doctor` looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "absent", "missing"]
"""`absent` may stay so; `missing` may not."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, and what to do about it."""

    what: str
    status: Status
    found: str
    fix: str | None = None
