"""An EAGLE head by kernels of our own on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from draftrank.engine.backends.cpp.decoder import MAX_TOKENS
from draftrank.engine.backends.cpp.runtime import CppRuntime
from draftrank.engine.backends.eagle import OfferedStates
from draftrank.models.eagle import Eagle3Fusion

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from draftrank.engine.backends.cpp.decoder import Product


class CppEagleRuntime(OfferedStates, CppRuntime):
    """See `EagleHead`."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._begin_head(model)
        self._join = self._joining()
        self._reduce = self._reduction()

    @torch.inference_mode()
    def reduced(self, states: Tensor) -> Tensor:
        """See `EagleHead.reduced`."""
        return self._reduce(states)

    def _joining(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Makes of embeddings and states, [tokens, hidden] each, what the first layer reads."""
        fusion = self._fusion
        if isinstance(fusion, Eagle3Fusion):
            return fusion
        project = self._decoder.product_of(fusion.projection)
        return lambda embedded, beside: project(fusion.beside(embedded, beside)).to(embedded.dtype)

    def _reduction(self) -> Product:
        fusion = self._fusion
        if isinstance(fusion, Eagle3Fusion):
            product, read = self._decoder.product_of(fusion.fc), fusion.fc.in_features
            return lambda states: product(states[:, :read])
        reduction = fusion.reduction
        if reduction is None:
            return fusion.reduce
        product = self._decoder.product_of(reduction)
        in_one = self._decoder.normed_product_of(reduction, len(self.layers) + 1)
        return in_one or (lambda states: product(fusion.normed(states)))

    def _inputs(self, tokens: Sequence[int], beside: Tensor | None) -> Tensor:
        assert beside is not None
        return self._join(self._decoder.embedded(tokens), beside)

    def _read_all_but_the_last(self, unseen: Sequence[int]) -> Sequence[int]:
        offered = self._offered
        if len(unseen) <= MAX_TOKENS or offered is None:
            return super()._read_all_but_the_last(unseen)
        self.offer(offered[:-MAX_TOKENS])
        rest = super()._read_all_but_the_last(unseen)
        self.offer(offered[-MAX_TOKENS:])
        return rest
