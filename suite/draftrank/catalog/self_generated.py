"""The declaration of text that the target writes itself, for calibration and distillation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from draftrank.catalog.base import Declared, Line
from draftrank.catalog.prompt_rows import PromptFile, ReadRows


class GivenPrompts(Declared):
    """Prompts of others, for the target to answer; a draft whose text is found to hold those of a task is
    refused when it is measured."""

    source: PromptFile
    """Where they come from: JSON Lines, plain or gzipped, or inline."""
    read: ReadRows = ReadRows(turns_from="turns")
    """How rows become prompts; the first turn of each is used."""
    licence: Line
    """Licence of the prompts."""


class SelfGenerated(Declared):
    """Conversations that the target writes: it answers, and makes up the user's turns from their opening
    unless prompts or their prompt_prefixes are given."""

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
    """Seed of the sampling, and of the order of given prompts or prompt_prefixes."""
    prompts: GivenPrompts | None = None
    """What users ask; absent: the target makes it up."""
    prompt_prefixes: Annotated[tuple[Line, ...], Field(min_length=1, max_length=1_000)] | None = None
    """How users' turns begin, each as often as the others; the target makes up the rest. So the text covers what
    the draft is for, where a target that is told nothing keeps to few subjects. Absent: it is told nothing."""

    @model_validator(mode="after")
    def _one_origin_of_questions(self) -> SelfGenerated:
        if self.prompts and self.prompt_prefixes:
            raise ValueError(
                "prompts are whole questions and prompt_prefixes are not (fix: remove one of the two)"
            )
        return self


CALIBRATION = SelfGenerated(
    kind="self_generated", tokens=4_096, sequence_tokens=128, batch_sequences=32, seed=0
)
"""The text that steps are calibrated on where a recipe declares no other."""
