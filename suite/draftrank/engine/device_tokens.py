"""Tokens that lie on a device until somebody looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from torch import Tensor


class DeviceTokens(Sequence[int]):
    """Token ids that a captured draft proposed. How many there are is known; looking at one waits for the device."""

    def __init__(self, on_device: Tensor) -> None:
        """Wraps int64 [count] on its device, where it must stay what it is until somebody has looked."""
        self.on_device = on_device
        self._read: list[int] | None = None

    def __len__(self) -> int:
        return len(self.on_device)

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> list[int]: ...
    def __getitem__(self, place: int | slice) -> int | list[int]:
        if self._read is None:
            self._read = self.on_device.tolist()
        return self._read[place]
