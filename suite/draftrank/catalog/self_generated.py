"""The declaration of text that the target writes itself, for calibration and distillation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from draftrank.catalog.base import Declared


class SelfGenerated(Declared):
    """Conversations the target makes up: it writes the user's turn from its opening, then answers."""

    kind: Literal["self_generated"]
    tokens: Annotated[int, Field(ge=1_000, le=2_000_000_000)]
    """Size of the corpus in tokens."""
    sequence_tokens: Annotated[int, Field(ge=16, le=8_192)] = 256
    """Length of each conversation in tokens."""
    prompt_temperature: Annotated[float, Field(gt=0.0, le=5.0)] = 1.0
    """Temperature while the user's turn is written."""
    answer_temperature: Annotated[float, Field(ge=0.0, le=5.0)] = 0.0
    """Temperature while it is answered; 0 matches greedy decoding."""
    batch_sequences: Annotated[int, Field(ge=1, le=4_096)] = 64
    """Conversations generated together."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the sampling."""


CALIBRATION = SelfGenerated(
    kind="self_generated", tokens=4_096, sequence_tokens=128, batch_sequences=32, seed=0
)
"""The text that steps are calibrated on where a recipe declares no other."""
