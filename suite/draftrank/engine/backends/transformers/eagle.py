"""An EAGLE-3 head by transformers' forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from draftrank.engine.backends.eagle import OfferedStates
from draftrank.engine.backends.transformers.runtime import TransformersRuntime

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class TransformersEagleRuntime(OfferedStates, TransformersRuntime):
    """See `EagleHead`."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._begin_head(model)
        self.keep_hidden_states((0,))

    def _own_states(self) -> Tensor:
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
        return {"inputs_embeds": self._fusion(embedded, states)[None]}
