"""How tokens are chosen: greedy, or sampling with its parameters."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from draftrank.catalog.base import Declared

MIN_TEMPERATURE = 0.001


class DecodingMode(Declared):
    """Temperature 0 is greedy decoding. Boards never mix modes."""

    temperature: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    """Divides the logits before the softmax; 0 takes the most likely token."""
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Keep the k most likely tokens."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Keep the smallest set of most likely tokens that holds this probability (Holtzman et al.)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the random numbers; each trial derives its own from it."""

    @model_validator(mode="after")
    def _computable(self) -> DecodingMode:
        if 0.0 < self.temperature < MIN_TEMPERATURE:
            raise ValueError(
                f"the temperature is too small to divide by (fix: use 0 or at least {MIN_TEMPERATURE})"
            )
        return self

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0

    @property
    def label(self) -> str:
        """The mode in a few characters, e.g. `greedy` or `t=0.7 top_p=0.9`."""
        if self.greedy:
            return "greedy"
        parts = [f"t={self.temperature:g}"]
        if self.top_k is not None:
            parts.append(f"top_k={self.top_k}")
        if self.top_p is not None:
            parts.append(f"top_p={self.top_p:g}")
        return " ".join(parts)
