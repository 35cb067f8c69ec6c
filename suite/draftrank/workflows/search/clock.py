"""How much of a search's budget is spent."""

from __future__ import annotations

import time
from pathlib import Path


class Clock:
    """Seconds spent so far, those of earlier runs included."""

    def __init__(self, file: Path) -> None:
        """Goes on from what the file says, if there is one."""
        self._file = file
        self._before = float(file.read_text()) if file.is_file() else 0.0
        self._noted = self._before
        self._began = time.monotonic()

    @property
    def spent_s(self) -> float:
        """Until now."""
        return self._before + time.monotonic() - self._began

    def note(self) -> float:
        """Keeps them for a later run; returns how many passed since the last note."""
        now = self.spent_s
        passed, self._noted = now - self._noted, now
        self._file.write_text(str(now))
        return passed
