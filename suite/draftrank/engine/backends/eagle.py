"""An EAGLE-3 head as a runtime: it reads hidden states beside its tokens, in whatever backend computes it.

Source: EAGLE-3 (Li et al. 2025, arXiv:2503.01840).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from draftrank.engine.backends.base import Runtime
from draftrank.models.eagle import Eagle3Fusion
from draftrank.models.forms import FEATURES

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from draftrank.engine.token_tree import TokenTree


class EagleHead(Runtime, ABC):
    """What a runtime of an EAGLE-3 head does besides: states can be offered for the tokens of the next forward."""

    model: PreTrainedModel
    """The head."""
    _fusion: Eagle3Fusion
    _offered: Tensor | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the target whose outputs are read."""
        return self._fusion.layers

    @property
    def state_width(self) -> int:
        """Numbers of each of the target's tokens: outputs of these layers, then the final state, which is not read."""
        return self._fusion.state_width

    @abstractmethod
    def reduced(self, states: Tensor) -> Tensor:
        """What of the target's states is offered: [tokens, state_width] to [tokens, hidden]."""

    def offer(self, states: Tensor) -> None:
        """States [tokens, hidden] for exactly the tokens of the next forward.

        Without an offer a single token reads the head's own state of the token before it, one of a tree that of its
        parent, and several tokens in a row read zeros.
        """
        self._offered = states


class OfferedStates(EagleHead):
    """The states beside the next tokens, kept on the host's side; put before the class of a backend that has no place of
    its own for them."""

    _of_tree: list[Tensor]
    """States of the tree so far, by index; of a chain's last token if there is none."""

    def _begin_head(self, model: PreTrainedModel) -> None:
        fusion = model.get_submodule(FEATURES)
        assert isinstance(fusion, Eagle3Fusion)
        self._fusion = fusion
        self._of_tree = []
        self.keep_hidden_states()

    def _own_states(self) -> Tensor:
        """What the head reads of itself, of the tokens of the last forward: [tokens, hidden]."""
        return self.hidden_states()

    def forward(
        self, tokens: Sequence[int], keep: int | None = None, tree: TokenTree | None = None
    ) -> Tensor:
        known = 0 if tree is None else len(tree.parents) - len(tokens)
        if tree is not None and self._offered is None and known:
            self.offer(torch.stack([self._of_tree[parent] for parent in tree.parents[known:]]))
        logits = super().forward(tokens, keep, tree)  # type: ignore[safe-super]  # the backend's
        states = self._own_states()
        self._of_tree = [states[-1]] if tree is None else [*self._of_tree[:known], *states]
        return logits

    def _beside(self, count: int) -> Tensor:
        """What the next tokens are read beside, [count, hidden]."""
        offered, self._offered = self._offered, None
        if offered is not None:
            return offered
        own = self._own_states()[-1:]
        return own if count == 1 and len(own) else own.new_zeros(count, own.shape[-1])
