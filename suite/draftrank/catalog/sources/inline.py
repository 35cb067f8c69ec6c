"""Prompts written in the task file itself."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from draftrank.catalog.base import Declared, Text
from draftrank.catalog.sources.base import SourceBase


class InlinePrompt(Declared):
    """One prompt: its user turns, and the expected answer where there is one."""

    turns: Annotated[tuple[Text, ...], Field(min_length=1, max_length=8)]
    """User messages in order; each is asked in the context of the ones before."""
    reference: Text | None = None
    """The exact final answer, for tasks that have one."""


class InlineSource(SourceBase):
    """For small private tasks; larger sets belong in a JSONL file."""

    kind: Literal["inline"]
    prompts: Annotated[tuple[InlinePrompt, ...], Field(min_length=1)]
    """The prompts."""

    def rows(self) -> list[dict[str, Any]]:
        """The prompts as the rows a JSONL file would hold."""
        return [
            {"id": f"{index:03d}", **prompt.model_dump(mode="json", exclude_none=True)}
            for index, prompt in enumerate(self.prompts, start=1)
        ]
