"""Several texts of equal length, written side by side by any decoder-only model."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

import torch

from draftrank.models.attention_windows import ATTENTION, cache_argument, context_window, layer_kinds

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class BatchDecoder:
    """Forwards over the newest tokens of every text, behind a cache of those before."""

    def __init__(self, model: PreTrainedModel, length: int) -> None:
        """Begins new texts of at most so many tokens."""
        from transformers import DynamicCache, StaticCache

        self._model = model
        self._known = signature(model.forward).parameters
        self._argument = cache_argument(model) or "past_key_values"
        config = model.config.get_text_config()
        self._cache: Any = (
            StaticCache(config=config, max_cache_len=length)
            if _reads_static_caches(model)
            else DynamicCache(config=config)
        )
        self._done = 0

    def next_logits(self, tokens: Tensor) -> Tensor:
        """Logits after the newest token of each text, [texts, vocabulary] in the model's dtype.

        Args:
            tokens: int64 [texts, new], on the model's device: those that no call before has read. Only the first call may
                read several, since some recurrent layers then begin anew.
        """
        places = torch.arange(self._done, self._done + tokens.shape[1], device=tokens.device)
        self._done += tokens.shape[1]
        told: dict[str, Any] = {"logits_to_keep": 1, "position_ids": places.expand(len(tokens), -1)}
        told = {name: value for name, value in told.items() if name in self._known}
        output = self._model(input_ids=tokens, use_cache=True, **{self._argument: self._cache}, **told)
        logits: Tensor = output.logits[:, -1]
        return logits


def _reads_static_caches(model: PreTrainedModel) -> bool:
    """Whether a cache with room for the whole text, which nothing is copied in, may take the place of a growing one: only
    where all that a layer asks for is the keys and values of each token, and not how many there are."""
    config = model.config.get_text_config()
    by_distance = getattr(config, "alibi", False) or context_window(config) is None
    return bool(
        set(layer_kinds(config)) <= ATTENTION
        and getattr(model, "_can_compile_fullgraph", False)
        and not by_distance
    )
