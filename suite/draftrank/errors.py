"""What can go wrong that is not a bug: every such failure names its place and its fix.

The command line turns these into text without a traceback. `exit_code` follows the command line's
contract: 1 when a job found a failure, 2 when the tool was used wrongly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one input, with everything needed to mend it."""

    message: str
    """What is wrong, as one clause."""
    file: str | None = None
    """The file that holds it, as the user would name it."""
    line: int | None = None
    """1-based line in `file`."""
    field: str | None = None
    """Dotted path of the field, e.g. `draft.steps.0.keep`."""
    fix: str | None = None
    """What to do about it."""

    def __str__(self) -> str:
        place = self.file or ""
        if place and self.line is not None:
            place += f":{self.line}"
        head = ": ".join(part for part in (place, self.field, self.message) if part)
        return f"{head} ({self.fix})" if self.fix else head


class DraftrankError(Exception):
    """Base of every expected failure."""

    exit_code = 1


class InvalidInputError(DraftrankError):
    """One or more declarations, files or arguments are wrong; carries all problems found."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @classmethod
    def single(
        cls,
        message: str,
        *,
        file: str | None = None,
        line: int | None = None,
        field: str | None = None,
        fix: str | None = None,
    ) -> InvalidInputError:
        """An error of one problem."""
        return cls([Problem(message, file, line, field, fix)])


class MissingDataError(DraftrankError):
    """A source cannot be had now (offline, gated, absent): the message says how to get it."""


class IncompatibleDraftError(DraftrankError):
    """A draft cannot serve its target, e.g. because their vocabularies differ."""


class UnsupportedModelError(DraftrankError):
    """The engine cannot run a model, or cannot run it as transformers does."""


class BuildError(DraftrankError):
    """A draft could not be built; the rest of the run goes on."""


class StoreError(DraftrankError):
    """The results store cannot be opened, migrated or written."""
