"""How long work says how far it is, without knowing who listens.

Rooms report through `Progress`; the command line draws it, a notebook may pass its own, and the
default is silent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Stage(Protocol):
    """One running piece of work."""

    def advance(self, amount: float = 1.0, note: str | None = None) -> None:
        """Reports `amount` more units done; `note` is a short live remark such as a loss."""


class Progress(Protocol):
    """Receiver of progress reports."""

    def stage(self, label: str, total: float | None = None) -> AbstractContextManager[Stage]:
        """Opens a stage of `total` units (unknown when None)."""

    def message(self, text: str) -> None:
        """Reports one line worth keeping on screen."""


class _SilentStage:
    def advance(self, amount: float = 1.0, note: str | None = None) -> None:
        return None


class SilentProgress(Progress):
    """Reports nothing."""

    @contextmanager
    def stage(self, label: str, total: float | None = None) -> Iterator[Stage]:
        yield _SilentStage()

    def message(self, text: str) -> None:
        return None


SILENT = SilentProgress()
"""The library's default."""
