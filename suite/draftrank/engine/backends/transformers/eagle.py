"""An EAGLE head by transformers' forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from draftrank.engine.backends.eagle import OfferedStates
from draftrank.engine.backends.transformers.runtime import TransformersRuntime
from draftrank.errors import UnsupportedModelError
from draftrank.models.eagle import Eagle3Fusion

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class TransformersEagleRuntime(OfferedStates, TransformersRuntime):
    """See `EagleHead`."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Wraps a head.

        Raises:
            UnsupportedModelError: its layer keeps a state, so that tokens would be read again without their hidden states.
        """
        super().__init__(model)
        if not self.capabilities.trees:
            raise UnsupportedModelError(
                f"an EAGLE head of a layer that keeps a state ({model.config.model_type}) cannot be run: make it of a layer "
                "whose attention has a KV cache"
            )
        self._begin_head(model)
        if isinstance(self._fusion, Eagle3Fusion):
            self.keep_hidden_states((0,))

    def _own_states(self) -> Tensor:
        if not isinstance(self._fusion, Eagle3Fusion):
            return super()._own_states()
        return self.hidden_states((0,)).chunk(2, -1)[0]

    @torch.inference_mode()
    def reduced(self, states: Tensor) -> Tensor:
        """See `EagleHead.reduced`."""
        return self._fusion.reduce(states)

    def _inputs(self, ids: Tensor, count: int) -> dict[str, Tensor]:
        states, rows = self._beside(count), ids.shape[1]
        if rows > count:
            states = torch.cat([states, states[-1:].expand(rows - count, -1)])
        embedded = self.model.get_input_embeddings()(ids)[0]
        read = self._fusion(embedded, states)
        return {"inputs_embeds": read.to(embedded.dtype)[None]}
