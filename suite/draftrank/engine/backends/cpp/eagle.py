"""An EAGLE-3 head by kernels of our own on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from draftrank.engine.backends.cpp.decoder import MAX_TOKENS
from draftrank.engine.backends.cpp.runtime import CppRuntime
from draftrank.engine.backends.eagle import OfferedStates

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class CppEagleRuntime(OfferedStates, CppRuntime):
    """See `EagleHead`."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._begin_head(model)
        self._product, self._read = self._decoder.product_of(self._fusion.fc), self._fusion.fc.in_features

    @torch.inference_mode()
    def reduced(self, states: Tensor) -> Tensor:
        """See `EagleHead.reduced`."""
        return self._product(states[:, : self._read])

    def _inputs(self, tokens: Sequence[int], beside: Tensor | None) -> Tensor:
        assert beside is not None
        # Nothing is rounded in between, so that a long forward gives the bits of several short ones.
        return torch.cat([self._decoder.embedded(tokens).float(), beside], -1)

    def _read_all_but_the_last(self, unseen: Sequence[int]) -> Sequence[int]:
        offered = self._offered
        if len(unseen) <= MAX_TOKENS or offered is None:
            return super()._read_all_but_the_last(unseen)
        self.offer(offered[:-MAX_TOKENS])
        rest = super()._read_all_but_the_last(unseen)
        self.offer(offered[-MAX_TOKENS:])
        return rest
