"""The package's version; results of different minor versions are never ranked together."""

from __future__ import annotations

__version__ = "0.3.0"


def minor_of(version: str) -> str:
    """Major and minor part of a version, e.g. `0.3` of `0.3.1`."""
    return ".".join(version.split(".")[:2])
