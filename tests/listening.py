"""What a job says while it works."""

from __future__ import annotations

from draftrank.progress import SilentProgress


class Listening(SilentProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)
