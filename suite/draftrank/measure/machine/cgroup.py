"""The limits a container puts on this process, as the kernel's control groups hold them.

Both versions are read, since many machines mount both. A group is bound by its own limits and by those
of every group above it, so the tightest one counts. Formats: the kernel's `admin-guide/cgroup-v1` and
`admin-guide/cgroup-v2`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

T = TypeVar("T")

_NO_LIMIT_BYTES = 1 << 60
"""Version 1 spells "no limit" as the largest number of whole pages."""


@dataclass(frozen=True, slots=True)
class ControlGroups:
    """The folders of the groups this process is in, the innermost of each hierarchy first."""

    folders: tuple[Path, ...]

    @classmethod
    def of_this_process(cls, root: Path = Path("/")) -> ControlGroups:
        """Finds them; none where there are no control groups. `root` is where `proc` and `sys` lie."""
        try:
            groups = (root / "proc/self/cgroup").read_text().splitlines()
            mounts = (root / "proc/self/mountinfo").read_text().splitlines()
        except OSError:
            return cls(())
        found: dict[Path, None] = {}
        for mount in mounts:
            within, mounted_at, controllers = _parse_mount(mount)
            for group in groups:
                _, names, path = group.split(":", 2)
                if controllers is not None and set(names.split(",")) & controllers:
                    found.update(dict.fromkeys(_chain(root, mounted_at, within, path)))
        return cls(tuple(found))

    def quota_cpus(self) -> float | None:
        """Processors' worth of time these groups may use; None without a limit."""
        return min(self._each(_quota_cpus), default=None)

    def memory_limit_bytes(self) -> int | None:
        """Memory these groups may hold; None without a limit."""
        return min(self._each(_memory_limit_bytes), default=None)

    def throttled_s(self) -> float | None:
        """Seconds for which the quota has stopped these groups so far, summed over processors."""
        return max(self._each(_throttled_s), default=None)

    def _each(self, read: Callable[[Path], T | None]) -> Iterator[T]:
        for folder in self.folders:
            try:
                value = read(folder)
            except (OSError, ValueError, IndexError):
                continue
            if value is not None:
                yield value


def _parse_mount(line: str) -> tuple[str, str, set[str] | None]:
    """Which part of a hierarchy is mounted where, for which controllers; version 2 has the name ``."""
    before, _, after = line.partition(" - ")
    _, _, _, within, mounted_at, *_ = before.split(" ")
    kind, _, options = after.split(" ", 2)
    controllers = {"cgroup2": {""}, "cgroup": set(options.split(","))}.get(kind)
    return within, mounted_at, controllers


def _chain(root: Path, mounted_at: str, within: str, path: str) -> Iterator[Path]:
    """The folders from a group up to the top of what is mounted."""
    top = PurePosixPath(mounted_at)
    try:
        inner = top / PurePosixPath(path).relative_to(within)
    except ValueError:  # a container sees the host's path but mounts only its own part
        inner = top
    for folder in (inner, *inner.parents):
        yield root / folder.relative_to("/")
        if folder == top:
            return


def _quota_cpus(folder: Path) -> float | None:
    both = folder / "cpu.max"
    if both.exists():
        quota, period = both.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    allowed = int((folder / "cpu.cfs_quota_us").read_text())
    return allowed / int((folder / "cpu.cfs_period_us").read_text()) if allowed > 0 else None


def _memory_limit_bytes(folder: Path) -> int | None:
    newer = folder / "memory.max"
    text = (newer if newer.exists() else folder / "memory.limit_in_bytes").read_text().strip()
    return None if text == "max" or int(text) >= _NO_LIMIT_BYTES else int(text)


def _throttled_s(folder: Path) -> float | None:
    pairs = (line.split() for line in (folder / "cpu.stat").read_text().splitlines())
    fields = {name: int(value) for name, value in pairs}
    if "throttled_usec" in fields:
        return fields["throttled_usec"] / 1e6
    return fields["throttled_time"] / 1e9 if "throttled_time" in fields else None
