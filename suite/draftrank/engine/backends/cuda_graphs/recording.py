"""Work on a GPU that is recorded once and then started by one call."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from draftrank.engine.stamps import DeviceStamp, HostStamp

if TYPE_CHECKING:
    from torch import Tensor

_UNDER_WAY = 4
"""Most reports that are asked for and not read."""


class Recording:
    """A CUDA graph (CUDA C++ Programming Guide, *CUDA Graphs*); elsewhere the work itself, for Triton's interpreter."""

    def __init__(self, work: Callable[[], None], *states: tuple[Tensor, Tensor]) -> None:
        """Does the work once, so that every kernel is compiled and loaded, and records it.

        Args:
            work: starts kernels; allocates nothing and does not wait.
            states: what the kernels read of where a sequence stands, and what shall stand there for the first time, when
                nothing of the sequence may be touched.
        """
        self._work = work
        self._graph: torch.cuda.CUDAGraph | None = None
        if states[0][0].device.type != "cuda":
            return
        before = [state.clone() for state, _ in states]
        for state, idle in states:
            state.copy_(idle)
        work()
        torch.cuda.synchronize()
        for (state, _), saved in zip(states, before, strict=True):
            state.copy_(saved)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            work()

    def replay(self) -> None:
        """Starts the work; does not wait for it."""
        if self._graph is None:
            self._work()
        else:
            self._graph.replay()


class Reports:
    """What a few numbers on a device are, each time they were asked for; nobody waits before they are read."""

    def __init__(self, numbers: Tensor) -> None:
        """Watches int64 [count] on its device."""
        self._numbers = numbers
        self._on_host = torch.zeros(
            _UNDER_WAY, len(numbers), dtype=torch.int64, pin_memory=numbers.device.type == "cuda"
        )
        self._asked = 0
        self._waiting: deque[tuple[Tensor, DeviceStamp | HostStamp]] = deque()

    def ask(self) -> None:
        """Asks for the numbers as they will be when everything asked before is done."""
        assert len(self._waiting) < _UNDER_WAY
        place = self._on_host[self._asked % _UNDER_WAY]
        place.copy_(self._numbers, non_blocking=True)
        self._asked += 1
        self._waiting.append((place, DeviceStamp() if self._numbers.device.type == "cuda" else HostStamp()))

    def read(self) -> tuple[list[int], DeviceStamp | HostStamp]:
        """The numbers asked for first, and when they were so; waits."""
        place, stamp = self._waiting.popleft()
        stamp.wait()
        return place.tolist(), stamp

    @property
    def under_way(self) -> int:
        """How many were asked for and not read."""
        return len(self._waiting)
