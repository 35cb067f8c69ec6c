"""What was computed from records before: a file beside the store that spares doing it again.

Each entry names what it was computed from, by content. All entries are dropped when the code that computes them
changes. The file may be deleted at any time, and a process that cannot use it computes everything anew.
"""

from __future__ import annotations

import hashlib
import sqlite3
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from draftrank.version import __version__

ROOMS = ("catalog", "measure", "store", "board")
"""Packages whose code decides what the entries hold."""
_BUSY_S = 5.0
_LAYOUT = """
CREATE TABLE IF NOT EXISTS code (sha256 TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS entries (
  kind TEXT NOT NULL, name TEXT NOT NULL, source TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (kind, name)
);
"""


class Derived:
    """Entries by kind and name, of each the newest; `source` says what it was made of. Use it as a context manager."""

    def __init__(self, path: Path | None) -> None:
        """Opens the file and makes it where it is absent; None, or one that cannot be used: nothing is kept."""
        self._connection: sqlite3.Connection | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = _opened(path)
        except (OSError, sqlite3.OperationalError):  # no right to write there, or no room
            return
        except sqlite3.DatabaseError:
            path.unlink(missing_ok=True)  # it is damaged; the next process makes a new one

    def __enter__(self) -> Derived:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._connection.close()

    def all_of(self, kind: str) -> dict[str, tuple[str, bytes]]:
        """Source and value of every entry of a kind, by name."""
        query = "SELECT name, source, value FROM entries WHERE kind = ?"
        return {name: (source, value) for name, source, value in self._asked(query, (kind,))}

    def find(self, kind: str, name: str, source: str) -> bytes | None:
        """The value that was made of this source; None when there is none."""
        query = "SELECT value FROM entries WHERE kind = ? AND name = ? AND source = ?"
        return next((bytes(value) for (value,) in self._asked(query, (kind, name, source))), None)

    def keep(self, kind: str, entries: Mapping[str, tuple[str, bytes]]) -> None:
        """Keeps sources and values by name."""
        rows = [(kind, name, source, value) for name, (source, value) in entries.items()]
        self._write("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", rows)

    def drop(self, kind: str, names: Iterable[str]) -> None:
        """Forgets entries."""
        self._write("DELETE FROM entries WHERE kind = ? AND name = ?", [(kind, name) for name in names])

    def _asked(self, query: str, values: tuple[str, ...]) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, values).fetchall() if self._connection else []
        except sqlite3.Error:  # damaged, or held by another process for too long
            return []

    def _write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        try:
            if rows and self._connection:
                with self._connection:
                    self._connection.executemany(statement, rows)
        except sqlite3.Error:
            return


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_S)
    try:
        connection.execute("PRAGMA synchronous = OFF")  # what a power cut damages is computed anew
        connection.executescript(_LAYOUT)
        if connection.execute("SELECT sha256 FROM code").fetchall() != [(code_sha256(),)]:
            with connection:
                connection.execute("DELETE FROM entries")
                connection.execute("DELETE FROM code")
                connection.execute("INSERT INTO code VALUES (?)", (code_sha256(),))
    except sqlite3.Error:
        connection.close()
        raise
    return connection


@cache
def code_sha256() -> str:
    """Hash of the code that computes entries, and of the Python that runs it."""
    found = hashlib.sha256(f"{__version__} {sys.version}".encode())
    package = Path(__file__).parents[1]
    for room in ROOMS:
        for path in sorted((package / room).rglob("*.py")):
            found.update(f"{path.relative_to(package).as_posix()} {path.stat().st_size} ".encode())
            found.update(path.read_bytes())
    return found.hexdigest()
