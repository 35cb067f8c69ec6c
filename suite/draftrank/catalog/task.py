"""The declaration of a task: prompts of one kind, and how their outputs are decoded."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from draftrank.catalog.base import Declared, Identifier, Line, Text
from draftrank.catalog.prompt_rows import PromptFile, ReadRows


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
    """What the task represents, and where its prompts come from."""
    licence: Line
    """Licence of the prompts."""
    source: PromptFile
    """Where the prompts come from: JSON Lines, plain or gzipped, or inline."""
    read: ReadRows = ReadRows(turns_from="turns")
    """How rows become prompts."""
    system_prompt: Text | None = None
    """System message; absent: the one of the target's chat template."""
    max_new_tokens: Annotated[int, Field(ge=2, le=100_000)] = 128
    """Length limit of each output, in tokens."""


class SuiteTask(Declared):
    """A task's part in a suite."""

    task: Identifier
    """The task's id."""
    prompts: Annotated[int, Field(ge=1)] | None = None
    """Number of prompts, taken at even distances; absent: all."""


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
    """What the suite is for."""
    tasks: Annotated[tuple[SuiteTask, ...], Field(min_length=1)]
    """The tasks; each appears once."""
    max_new_tokens: Annotated[int, Field(ge=2, le=100_000)] | None = None
    """Caps the tasks' own length limits."""
    repeats: Annotated[int, Field(ge=1, le=1000)] = 2
    """How many times each arm decodes each prompt."""

    @model_validator(mode="after")
    def _tasks_once(self) -> Suite:
        names = [entry.task for entry in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError("a task stands twice (fix: name each task once)")
        return self
