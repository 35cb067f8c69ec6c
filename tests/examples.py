"""How many examples a law is tried on: few by day, ten times as many at night."""

from __future__ import annotations

from typing import Any

from hypothesis import settings


def examples(count: int, **more: Any) -> settings:
    """So many examples by day; `make test-nightly` loads a profile with more of them.

    Args:
        count: what the default suite tries.
        more: other settings.
    """
    return settings(max_examples=count * settings.default.max_examples // 100, **more)
