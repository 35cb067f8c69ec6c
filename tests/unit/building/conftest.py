"""The fixtures of `target_fixtures`."""

from __future__ import annotations

from target_fixtures import *  # noqa: F403
