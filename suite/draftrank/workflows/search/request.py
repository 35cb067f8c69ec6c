"""What a search is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from draftrank.catalog.backend import Auto, Backend, Device, Dtype


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What to search."""

    target: str
    """Id of the target."""
    suite: str = "quick"
    """Id of the suite that decides."""
    backend: Backend | Auto = "auto"
    """What runs the forwards of the target and its drafts."""
    dtype: Dtype | Auto = "auto"
    """What weights are loaded in."""
    device: Device | Auto = "auto"
    """Where to compute."""
    budget_s: float = 7200.0
    """Seconds for all of it."""
    seed: int = 0
    """Seed of the choices."""
