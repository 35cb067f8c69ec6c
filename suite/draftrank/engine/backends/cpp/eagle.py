"""An EAGLE head by kernels of our own on a CPU."""

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

    from draftrank.engine.backends.cpp.decoder import Product


class CppEagleRuntime(OfferedStates, CppRuntime):
    """See `EagleHead`."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._begin_head(model)
        self._project = self._decoder.product_of(self._fusion.projection)
        self._reduce = self._reduction()

    @torch.inference_mode()
    def reduced(self, states: Tensor) -> Tensor:
        """See `EagleHead.reduced`."""
        return self._reduce(states)

    def _reduction(self) -> Product:
        fusion, reduction = self._fusion, self._fusion.reduction
        if reduction is None:
            return fusion.reduce
        product = self._decoder.product_of(reduction)
        in_one = self._decoder.normed_product_of(reduction, len(self.layers) + 1)
        return in_one or (lambda states: product(fusion.normed(states)))

    def _inputs(self, tokens: Sequence[int], beside: Tensor | None) -> Tensor:
        assert beside is not None
        embedded = self._decoder.embedded(tokens)
        return self._project(self._fusion.beside(embedded, beside)).to(embedded.dtype)

    def _read_all_but_the_last(self, unseen: Sequence[int]) -> Sequence[int]:
        offered = self._offered
        if len(unseen) <= MAX_TOKENS or offered is None:
            return super()._read_all_but_the_last(unseen)
        self.offer(offered[:-MAX_TOKENS])
        rest = super()._read_all_but_the_last(unseen)
        self.offer(offered[-MAX_TOKENS:])
        return rest
