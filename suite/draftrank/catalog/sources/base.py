"""What every source can do: give the checked file or folder it names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from draftrank.catalog.base import Declared
from draftrank.errors import InvalidInputError, MissingDataError
from draftrank.progress import SILENT, Progress

MAX_FETCHED_BYTES = 64 << 30
"""Of one file: room for the weights of a large target, and an end to what never ends."""


@dataclass(frozen=True, slots=True)
class FetchContext:
    """Where fetched things go and what a fetch may do."""

    cache: Path
    """Folder of the content-addressed cache."""
    roots: tuple[Path, ...] = ()
    """Folders that `local` paths are looked up in: the workspace, then DRAFTRANK_DATA's entries."""
    offline: bool = False
    """True: use what is cached, fetch nothing."""
    progress: Progress = SILENT
    shared_drafts: str | None = None
    """Address of the folder in which machines share built drafts; None: there is none."""


class SourceBase(Declared):
    """A place that bytes come from, with what is needed to check them."""

    def fetch(self, context: FetchContext) -> Path:
        """Returns a checked file (or, for a whole model repository, a folder).

        Raises:
            MissingDataError: it cannot be had now; the message says how to get it.
            InvalidInputError: what arrived is not what was declared.
        """
        raise TypeError(f"{type(self).__name__} names no bytes")  # every subclass overrides this


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_sha256(path: Path, expected: str, what: str) -> None:
    """Refuses a file whose bytes are not those declared.

    Raises:
        InvalidInputError: the hashes differ.
    """
    found = file_sha256(path)
    if found != expected:
        raise InvalidInputError.single(
            f"sha256 does not match: declared {expected}, found {found}",
            file=what,
            field="source.sha256",
            fix="check that the right file is named; if its content was meant to change, declare the found hash",
        )


def copy_bounded(source: IO[bytes], output: IO[bytes], what: str) -> None:
    """Copies a stream of a stranger's length.

    Raises:
        InvalidInputError: it is longer than `MAX_FETCHED_BYTES`.
    """
    copied = 0
    while block := source.read(1 << 20):
        copied += len(block)
        if copied > MAX_FETCHED_BYTES:
            raise InvalidInputError.single(
                f"is larger than {MAX_FETCHED_BYTES >> 30} GiB", file=what, fix="declare a smaller file"
            )
        output.write(block)


def fetch_once(
    context: FetchContext, sha256: str, name: str, what: str, write: Callable[[Path], None]
) -> Path:
    """The file with this content in the cache. Where it is not there yet, `write` makes one in a private folder; it is
    checked, and one rename publishes all of it or nothing.

    Raises:
        MissingDataError: it is not in the cache and the run is offline.
        InvalidInputError: its bytes are not those declared.
    """
    final = context.cache / "sources" / sha256[:2] / sha256 / name
    if final.exists():
        return final
    if context.offline:
        raise MissingDataError(
            f"{what} is not in the cache and the run is offline: run once with access to the network"
        )
    final.parent.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".staging-", dir=final.parent.parent) as folder:
        staged = Path(folder) / name
        write(staged)
        check_sha256(staged, sha256, what)
        final.parent.mkdir(exist_ok=True)
        os.replace(staged, final)
    return final
