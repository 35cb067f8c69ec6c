"""Moments between which seconds are counted: on the host's clock, or on a device's without waiting for it."""

from __future__ import annotations

from time import perf_counter
from typing import Any


class HostStamp:
    """Now."""

    def __init__(self) -> None:
        self._at = perf_counter()

    def since(self, earlier: Any) -> float:
        """Seconds after another moment on the same clock."""
        seconds: float = self._at - earlier._at
        return seconds

    def wait(self) -> None:
        """Returns when the moment has come."""


class DeviceStamp:
    """The moment when a GPU has done everything it has been asked so far (CUDA events)."""

    def __init__(self) -> None:
        import torch

        self._event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._event.record()

    def since(self, earlier: Any) -> float:
        """See `HostStamp.since`; waits for this moment."""
        self.wait()
        milliseconds: float = earlier._event.elapsed_time(self._event)
        return milliseconds / 1000

    def wait(self) -> None:
        """See `HostStamp.wait`."""
        self._event.synchronize()
