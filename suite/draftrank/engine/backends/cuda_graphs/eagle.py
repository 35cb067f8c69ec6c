"""An EAGLE-3 head in captured graphs; see `OfferedStates` for what it reads when."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch

from draftrank.engine.backends.cuda_graphs.decoder import TILE
from draftrank.engine.backends.cuda_graphs.recording import Recording
from draftrank.engine.backends.cuda_graphs.runtime import CudaGraphsRuntime
from draftrank.engine.backends.cuda_graphs.state import MAX_ROWS
from draftrank.engine.backends.eagle import EagleHead

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from draftrank.engine.token_tree import TokenTree


class CudaGraphsEagleRuntime(EagleHead, CudaGraphsRuntime):
    """See `EagleHead`."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        assert self.decoder.fusion is not None
        self._fusion = self.decoder.fusion
        self._of_tree: Tensor | None = None
        """States of the tree so far, by index; of a chain's last token if there is none."""
        self._reductions: dict[tuple[int, int], Recording] = {}
        self._reduced = torch.zeros_like(self.decoder.offered)
        self.keep_hidden_states()

    @torch.inference_mode()
    def reduced(self, states: Tensor) -> Tensor:
        """See `EagleHead.reduced`; valid until the next call where they are few."""
        rows = len(states)
        if rows > MAX_ROWS or not _is_buffer(states):  # a prompt's
            padded = -(-rows // TILE) * TILE
            whole = states.new_zeros(padded, states.shape[1])
            whole[:rows] = states
            reduced = states.new_zeros(padded, self.decoder.hidden_size)
            self.decoder.reduce(whole, padded, reduced)
            return reduced[:rows]
        size = TILE if rows <= TILE else MAX_ROWS
        key = (states.data_ptr(), size)
        if key not in self._reductions:
            work = partial(self.decoder.reduce, states, size, self._reduced)
            self._reductions[key] = self.recording(work)
        self._reductions[key].replay()
        return self._reduced[:rows]

    def forward(
        self, tokens: Sequence[int], keep: int | None = None, tree: TokenTree | None = None
    ) -> Tensor:
        if tree is None:
            logits = super().forward(tokens, keep)
            self._of_tree = self._final(self._last - 1, self._last)
            return logits
        known = len(tree.parents) - len(tokens)
        if self._offered is None and known:
            assert self._of_tree is not None
            self.offer(self._of_tree[list(tree.parents[known:])])
        logits = super().forward(tokens, keep, tree)
        told = self._final(0, len(tokens))
        self._of_tree = (
            told if self._of_tree is None or not known else torch.cat([self._of_tree[:known], told])
        )
        return logits

    def _final(self, first: int, last: int) -> Tensor:
        return self._states[first:last, -1].clone()

    def _prepare(self, tokens: Sequence[int], start: int, tree: TokenTree | None) -> None:
        rows, offered = len(tokens), self._offered
        if offered is not None:
            self._offered = offered[rows:] if len(offered) > rows else None
            self.decoder.offered[:rows] = offered[:rows]
        elif rows == 1 and start:
            self.decoder.offered[0] = self._states[self._last - 1, -1]
        else:
            self.decoder.offered[:rows] = 0


def _is_buffer(states: Tensor) -> bool:
    """Whether these are rows of a buffer that holds `MAX_ROWS` of them and stays where it is."""
    size = states.untyped_storage().nbytes() // states.element_size()
    return states.is_contiguous() and states.storage_offset() == 0 and size == MAX_ROWS * states.shape[1]
