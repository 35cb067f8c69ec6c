"""Several continuations in one forward: a tree of tokens, each of which sees its own ancestors alone.

Source: tree attention (SpecInfer, Miao et al. 2023, arXiv:2305.09781; Medusa, Cai et al. 2024, arXiv:2401.10774).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, device


MAX_TREE_TOKENS = 64
"""Most tokens of a tree, its root counted: which of them a token sees fits into a machine word."""


@dataclass(frozen=True, slots=True)
class TreeWidth:
    """How a draft grows a tree."""

    most: int
    """How many tokens are looked at behind each."""
    expanded: int
    """Behind how many tokens of a level, at most, it goes on."""
    branch_above: float
    """Probability, of a token and all proposed ones before it together, from which on more than a level's most probable
    token are proposed."""
    stop_below: float | None
    """The same below which it does not go on; None: it goes on behind all that are proposed."""

    def goes_on(self, path: float, *, first: bool) -> bool:
        """Whether the draft is asked what follows a token of this probability, which is its level's first or not."""
        return first or path >= self.branch_above if self.stop_below is None else path >= self.stop_below


class Branch(NamedTuple):
    """A token of a tree that a draft has grown."""

    token: int
    parent: int
    """The number, among those told, of the one before it; -1: the context's last token."""
    draft_index: int
    """In the draft's own tree, once the draft has read it there; 0: it has not."""


@dataclass(frozen=True)
class TokenTree:
    """The shape of a tree; the root has index 0."""

    parents: tuple[int, ...]
    """The parent index of each token, which is lower than its own; the root comes first and has -1."""

    @classmethod
    def behind(cls, parents: Sequence[int]) -> TokenTree:
        """The tree of a proposal's tokens behind the context's last token; for `parents` see `Proposal.parents`."""
        return cls((-1, *(parent + 1 for parent in parents)))

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """How many tokens stand between each token and the root, itself counted; the root's is 0."""
        found: list[int] = []
        for parent in self.parents:
            found.append(found[parent] + 1 if found else 0)
        return tuple(found)

    @cached_property
    def ancestors(self) -> tuple[int, ...]:
        """The tree attention mask: for each token, the indices of its ancestors and its own as the bits of a number."""
        found: list[int] = []
        for index, parent in enumerate(self.parents):
            found.append(1 << index | (found[parent] if found else 0))
        return tuple(found)

    def visible(self, cached: int, window: int | None, on: device) -> Tensor:
        """Which positions each token sees.

        Args:
            cached: tokens before the root, all of them ancestors.
            window: how many last positions a token sees, itself counted; None: all.
            on: the device.

        Returns:
            bool tensor of shape [tokens, cached + tokens].
        """
        import torch

        tokens = len(self.parents)
        mask = torch.eye(tokens, dtype=torch.bool, device=on)
        for index, parent in enumerate(self.parents):
            if parent >= 0:
                mask[index] |= mask[parent]
        seen = torch.cat([torch.ones(tokens, cached, dtype=torch.bool, device=on), mask], -1)
        if window is not None:
            depths = torch.tensor(self.depths, device=on)
            keys = torch.cat([torch.arange(cached, device=on), cached + depths])
            seen &= keys[None] > cached + depths[:, None] - window
        return seen
