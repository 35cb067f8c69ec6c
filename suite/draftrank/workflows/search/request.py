"""What a search is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from draftrank.catalog.precision import Forward


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What to search."""

    target: str
    """Id of the target."""
    suite: str = "quick"
    """Id of the suite that decides."""
    dtype: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Precision of the target."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute."""
    forward: Forward = "eager"
    """How torch runs forwards."""
    budget_s: float = 7200.0
    """Seconds for all of it."""
    seed: int = 0
    """Seed of the choices."""
