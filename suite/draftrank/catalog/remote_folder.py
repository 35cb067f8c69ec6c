"""A folder that lies anywhere fsspec reaches: a shared disk, object storage, another machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from draftrank.errors import InvalidInputError, MissingDataError

_REFUSED = (OSError, ValueError, RuntimeError)
"""What file systems of others raise when they cannot be reached or do not allow it; some wrap it in errors of
their own, which descend from these."""


class RemoteFolder:
    """Files below one address, by names with `/` between their parts."""

    def __init__(self, address: str) -> None:
        """Prepares to reach `address`, e.g. `s3://bucket/drafts`, `file:///mnt/drafts` or a path.

        Raises:
            InvalidInputError: nothing installed reaches such addresses.
        """
        from fsspec.core import url_to_fs

        self.address = address
        try:
            system, root = url_to_fs(address)
        except (ImportError, ValueError) as error:
            raise InvalidInputError.single(
                f"{address}: cannot be reached: {error}",
                fix="install the package it names, or use file:// and a path",
            ) from error
        self._system: Any = system
        self._root = str(root).rstrip("/")

    def files(self) -> list[str]:
        """Names of all files below it, sorted; none where the folder is absent."""
        with _told(self.address):
            found = self._system.find(self._root)
        return sorted(str(path).removeprefix(self._root).lstrip("/") for path in found)

    def read(self, name: str) -> bytes | None:
        """A file's bytes; None where it is absent."""
        with _told(self.address):
            try:
                return bytes(self._system.cat_file(f"{self._root}/{name}"))
            except FileNotFoundError:
                return None

    def get(self, name: str, path: Path) -> None:
        """Copies a file from there."""
        with _told(self.address):
            self._system.get_file(f"{self._root}/{name}", str(path))

    def put(self, path: Path, name: str) -> None:
        """Copies a file to there, over one of the same name."""
        target = f"{self._root}/{name}"
        with _told(self.address):
            self._system.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._system.put_file(str(path), target)


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Turns what a file system refuses into an error that names the address."""
    try:
        yield
    except _REFUSED as error:
        raise MissingDataError(
            f"{address}: {type(error).__name__}: {error} (check the address and your rights there)"
        ) from error
