"""The declaration of text that the target writes itself, for calibration and distillation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from draftrank.catalog.base import Declared, Identifier, Line, RelativePath
from draftrank.catalog.prompt_rows import PromptFile, ReadRows

if TYPE_CHECKING:
    from draftrank.catalog.workspace import References


def references_of(info: ValidationInfo, what: str) -> References:
    """What a file may refer to; `ValueError` with a fix outside a workspace, where `what` is unknown."""
    if info.context is None:
        raise ValueError(f"{what} is only known inside a workspace (fix: write its content here)")
    found: References = info.context
    return found


def _lines_of_file(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        return references_of(info, f"the file {value!r}").lines(value)
    return tuple(value) if isinstance(value, list) else value


def _text_of_corpus(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        return references_of(info, f"the corpus {value!r}").corpus(value)
    if isinstance(value, dict):
        # As JSON again: a validator is handed Python's lists, which strict fields refuse for tuples.
        return SelfGenerated.model_validate_json(json.dumps(value), context=info.context)
    return value


_Prefixes = Annotated[tuple[Line, ...], Field(min_length=1, max_length=1_000)]


class GivenPrompts(Declared):
    """Prompts from elsewhere that the target answers. A session refuses the draft if they contain prompts of its
    tasks."""

    source: PromptFile
    """Where they come from: JSON Lines, plain or gzipped, or inline."""
    read: ReadRows = ReadRows(turns_from="turns")
    """How rows become prompts; the first turn of each is used."""
    licence: Line
    """Licence of the prompts."""


class SelfGenerated(Declared):
    """Conversations that the target writes. It answers the prompts, and also writes the prompts themselves unless they
    are given; `prompt_prefixes` sets how those begin."""

    kind: Literal["self_generated"]
    tokens: Annotated[int, Field(ge=1_000, le=2_000_000_000)]
    """Size of the corpus in tokens."""
    sequence_tokens: Annotated[int, Field(ge=16, le=8_192)] = 256
    """Length of each conversation in tokens."""
    prompt_temperature: Annotated[float, Field(gt=0.0, le=5.0)] = 1.0
    """Sampling temperature of the prompts."""
    answer_temperature: Annotated[float, Field(ge=0.0, le=5.0)] = 0.0
    """Sampling temperature of the answers; 0 is greedy decoding."""
    batch_sequences: Annotated[int, Field(ge=1, le=4_096)] = 64
    """Conversations generated in one batch."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the sampling and of the order of given prompts or prompt prefixes."""
    prompts: GivenPrompts | None = None
    """Prompts for the target to answer; absent: it writes them itself."""
    prompt_prefixes: Annotated[
        _Prefixes | None,
        BeforeValidator(_lines_of_file, json_schema_input_type=RelativePath | _Prefixes | None),
    ] = None
    """How prompts begin, each prefix equally often; the target writes the rest. Prefixes widen the range of subjects:
    without any, a small target writes about few. A list, or a text file of the workspace with one prefix a line."""

    @model_validator(mode="after")
    def _one_origin_of_prompts(self) -> SelfGenerated:
        if self.prompts and self.prompt_prefixes:
            raise ValueError(
                "prompts are whole questions and prompt_prefixes are not (fix: remove one of the two)"
            )
        return self


CorpusText = Annotated[
    SelfGenerated,
    BeforeValidator(_text_of_corpus, json_schema_input_type=Identifier | SelfGenerated),
]
"""The name of a corpus of the recipe's target, or a text declared in place; either way the value is the text."""


class Corpus(Declared):
    """One text of one target, declared once and referred to by recipes by its id."""

    schema_version: Literal[1]
    """Version of this file's form."""
    id: Identifier
    """The corpus's name, equal to the file's stem."""
    target: Identifier
    """The target that writes it; the file lies in that target's folder `corpora`."""
    description: Line | None = None
    """What it is for."""
    text: SelfGenerated
    """How the target writes it."""


CALIBRATION = SelfGenerated(
    kind="self_generated", tokens=4_096, sequence_tokens=128, batch_sequences=32, seed=0
)
"""The text that steps are calibrated on where a recipe declares no other."""
