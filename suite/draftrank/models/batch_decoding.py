"""Several texts of equal length, written side by side by any decoder-only model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812

from draftrank.models.attention_windows import ATTENTION, cache_argument, context_window, layer_kinds

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

_GROUPED = "draftrank_grouped"
"""Name by which transformers knows `_grouped_attention`."""


class BatchDecoder:
    """Forwards over the newest tokens of every text, behind a cache of those before."""

    def __init__(self, model: PreTrainedModel, length: int) -> None:
        """Begins new texts of at most so many tokens."""
        from transformers import DynamicCache, StaticCache

        self._model = model
        self._known = signature(model.forward).parameters
        self._argument = cache_argument(model) or "past_key_values"
        config = model.config.get_text_config()
        static = _reads_static_caches(model)
        self._cache: Any = (
            StaticCache(config=config, max_cache_len=length) if static else DynamicCache(config=config)
        )
        exchangeable = bool(getattr(model, "_supports_attention_backend", False))
        self._grouped = (
            static and exchangeable and model.device.type == "cpu" and config._attn_implementation == "sdpa"
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
        with _grouping(self._model, on=self._grouped):
            output = self._model(input_ids=tokens, use_cache=True, **{self._argument: self._cache}, **told)
        logits: Tensor = output.logits[:, -1]
        return logits


@contextmanager
def _grouping(model: PreTrainedModel, *, on: bool) -> Iterator[None]:
    """Lets a model's layers attend by `_grouped_attention` instead of transformers' sdpa."""
    if not on:
        yield
        return
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(_GROUPED, _grouped_attention)
    AttentionMaskInterface.register(_GROUPED, sdpa_mask)
    config = model.config.get_text_config()
    config._attn_implementation = _GROUPED
    try:
        yield
    finally:
        config._attn_implementation = "sdpa"


def _grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **told: Any
) -> tuple[Tensor, None]:
    """Attention as transformers' sdpa gives it, of one new token in each text, without copies of the cache.

    The heads that share keys are handed over as if they were so many positions, and what no text may see yet is not
    read: transformers repeats the keys and values of the whole room for every head.

    Args:
        query: [texts, heads, new, head_dim].
        key, value: [texts, key heads, room, head_dim].
        attention_mask: bool [texts or 1, 1, new, room], True where a token is seen.

    Returns:
        [texts, new, heads, head_dim], and no weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    texts, heads, new, width = query.shape
    if new > 1 or attention_mask is None or attention_mask.dtype != torch.bool:
        found: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **told)[0]
        return found, None
    seen = int(attention_mask.flatten(0, 2).any(0).nonzero().max()) + 1
    found = F.scaled_dot_product_attention(
        query.reshape(texts, key.shape[1], -1, width),
        key[:, :, :seen],
        value[:, :, :seen],
        attn_mask=attention_mask[..., :seen],
        scale=told.get("scaling"),
    )
    return found.reshape(texts, heads, 1, -1).transpose(1, 2), None


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
