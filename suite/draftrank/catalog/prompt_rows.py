"""Where prompts lie, and how a row of data becomes one."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from draftrank.catalog.base import Declared, Line, Text
from draftrank.catalog.sources import Source
from draftrank.catalog.sources.base import SourceBase
from draftrank.catalog.sources.hub import HubSource
from draftrank.catalog.sources.local import LocalSource


def _pinned_file(source: SourceBase) -> SourceBase:
    if isinstance(source, LocalSource) and source.sha256 is None:
        raise ValueError("prompts without their sha256 (fix: add what `sha256sum` says of the file)")
    if isinstance(source, HubSource) and source.path is None:
        raise ValueError("prompts are one file of a repository (fix: add `path` and `sha256`)")
    return source


PromptFile = Annotated[Source, AfterValidator(_pinned_file)]
"""One file of prompts, pinned by its hash, or prompts written inline."""


class ReadRows(Declared):
    """How a row of the data becomes a prompt.

    A template names fields as `{field}` or `{field.0.inner}`; values that are not text are written
    as JSON, and any other brace stays as it is. `{row}` is the row's line number.
    """

    id: Text = "{id}"
    """Template of the prompt's id."""
    turns: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    """One template per user turn."""
    turns_from: Line | None = None
    """Instead of `turns`: the field that holds the list of user turns."""
    reference: Text | None = None
    """Template of the exact answer, for tasks that have one."""

    @model_validator(mode="after")
    def _one_form(self) -> ReadRows:
        if (self.turns is None) == (self.turns_from is None):
            raise ValueError("turns and turns_from exclude each other (fix: give exactly one)")
        return self
