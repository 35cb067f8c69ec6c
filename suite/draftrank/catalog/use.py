"""How a program other than draftrank is given a draft."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Use:
    """One program that runs the draft, or why it cannot."""

    program: str
    language: str
    """Of the snippet."""
    snippet: str | None
    """What to type; None where it cannot run it."""
    remark: str | None
    """What to know; with no snippet, the reason."""
