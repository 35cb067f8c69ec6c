"""The declaration of a task: prompts of one kind, and how their outputs are decoded."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from draftrank.catalog.base import Declared, Identifier, Line, Text
from draftrank.catalog.sources import Source
from draftrank.catalog.sources.base import SourceBase
from draftrank.catalog.sources.hub import HubSource
from draftrank.catalog.sources.local import LocalSource


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


class Task(Declared):
    """Prompts of one kind."""

    descriptive: ClassVar[frozenset[str]] = frozenset({"title", "description", "licence"})

    schema_version: Literal[1]
    """Version of this file's form."""
    id: Identifier
    """The task's name; its file has the same."""
    title: Line
    """Name for people."""
    description: Text | None = None
    """What the task stands for and where its prompts come from."""
    licence: Line
    """Licence of the prompts."""
    source: Source
    """Where the prompts come from: JSON Lines, plain or gzipped, or inline."""
    read: ReadRows = ReadRows(turns_from="turns")
    """How rows become prompts."""
    system_prompt: Text | None = None
    """System message; absent: the one of the target's chat template."""
    max_new_tokens: Annotated[int, Field(ge=2, le=100_000)] = 128
    """Length limit of each output, in tokens."""

    @field_validator("source")
    @classmethod
    def _pinned_file(cls, source: SourceBase) -> SourceBase:
        if isinstance(source, LocalSource) and source.sha256 is None:
            raise ValueError("task data without its sha256 (fix: add what `sha256sum` says of the file)")
        if isinstance(source, HubSource) and source.path is None:
            raise ValueError("task data is one file of a repository (fix: add `path` and `sha256`)")
        return source


class SuiteTask(Declared):
    """A task's part in a suite."""

    task: Identifier
    """The task's id."""
    prompts: Annotated[int, Field(ge=1)] | None = None
    """How many of its prompts, taken at even distances; absent: all."""


class Suite(Declared):
    """A named selection of tasks and prompts: what one session measures."""

    descriptive: ClassVar[frozenset[str]] = frozenset({"title", "description"})

    schema_version: Literal[1]
    """Version of this file's form."""
    id: Identifier
    """The suite's name; its file has the same."""
    title: Line
    """Name for people."""
    description: Text | None = None
    """What it is good for."""
    tasks: Annotated[tuple[SuiteTask, ...], Field(min_length=1)]
    """The tasks; each appears once."""
    max_new_tokens: Annotated[int, Field(ge=2, le=100_000)] | None = None
    """Lowers the tasks' own length limit."""
    repeats: Annotated[int, Field(ge=1, le=1000)] = 2
    """How often every prompt is decoded by every arm."""

    @model_validator(mode="after")
    def _tasks_once(self) -> Suite:
        names = [entry.task for entry in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError("a task stands twice (fix: name each task once)")
        return self
