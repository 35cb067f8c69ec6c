"""Memory for weights and caches in huge pages, where the system has them.

Read from pages of 4 KiB, weights come at about half the speed that memory has: the processor fetches ahead within a page
only, and looks up where each lies. Keys and values, which are fewer, gain a few hundredths of a forward.
"""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch
from torch import Tensor

_HUGE = 2 << 20
_LINE = 64
_AT_LEAST = 64 << 20
"""Bytes asked for at a time; what is never written takes no memory."""


class Pages:
    """Gives out memory that is freed with the last tensor in it."""

    def __init__(self, size: int = _AT_LEAST) -> None:
        """Asks for `size` bytes at a time, or more where one tensor needs more."""
        self._size = size
        self._left = torch.empty(0, dtype=torch.uint8)

    def take(self, count: int, dtype: torch.dtype) -> Tensor:
        """A tensor [count] of zeros, on a boundary of cache lines."""
        needed = count * dtype.itemsize
        if len(self._left) < needed:
            self._left = _mapped(max(needed, self._size))
        taken, self._left = self._left[:needed], self._left[needed + -needed % _LINE :]
        return taken.view(dtype)


def _mapped(size: int) -> Tensor:
    # Not shared, as mmap's default is: the system gives shared memory small pages.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    pages = mmap.mmap(-1, size + _HUGE, **private)
    with suppress(AttributeError, OSError):  # another system, or one without huge pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    found = torch.frombuffer(pages, dtype=torch.uint8)
    begin = -found.data_ptr() % _HUGE
    return found[begin : begin + size]
