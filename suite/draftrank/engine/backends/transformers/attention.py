"""Attention of a few new tokens over many cached ones, without copying keys and values.

Where several query heads share one kv head, transformers either repeats the kv heads in
memory or takes a kernel that does not know such groups. For one bf16 token on a CPU that kernel needs six
times as long as the fused one, from some hundred cached tokens on a good part of the whole forward: a baseline
slowed down like that makes any draft look good. Seen as more queries of its kv head, a group needs
neither (for one token transformers does so itself where a mask is given).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

NAME = "draftrank_grouped"
LIBRARY = "sdpa"
"""transformers' own, for its reference arms."""
_OF_NO_EFFECT = frozenset({"position_ids", "use_cache", "sliding_window", "output_router_logits"})
"""Arguments of transformers' models that do not change what attention computes: windows are in the mask."""
MAX_QUERIES = 96
"""Longer forwards are prefills, where repeating the kv heads costs little beside the products."""


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **named: Any,
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it.

    Args:
        module: the attention layer.
        query: [batch, heads, new, size].
        key: [batch, kv heads, cached, size].
        value: like `key`.
        attention_mask: [batch, 1, new, cached], True or 0 where a query sees a key; None: all, or, for
            several new tokens, the causal pattern.
        dropout: share of weights dropped.
        scaling: factor of the scores; None: one over the root of the size.
        is_causal: passed on.
        named: passed on to `LIBRARY`, which computes whatever they ask for or refuses it.

    Returns:
        [batch, new, heads, size], and None for the weights.
    """
    batch, heads, new, size = query.shape
    group = heads // key.shape[1]
    causal = attention_mask is None and new > 1
    shared = attention_mask is None or attention_mask.shape[1] == 1
    unknown = any(value is not None and name not in _OF_NO_EFFECT for name, value in named.items())
    if group == 1 or new > MAX_QUERIES or causal or not shared or unknown:
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **named
        )
        return result
    mask = attention_mask
    if mask is not None and new > 1:
        mask = mask.repeat(1, 1, group, 1)
    found = scaled_dot_product_attention(
        query.reshape(batch, key.shape[1], group * new, size),
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return found.reshape(batch, heads, new, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, grouped_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Makes a model, and every view of it, attend by `grouped_attention` where transformers chose `LIBRARY` for it.

    Any other choice stays: a model that `LIBRARY` cannot compute (attention sinks, softcapping) has attention of its own.
    """
    if model.config._attn_implementation == LIBRARY:
        model.set_attn_implementation(NAME)


@contextmanager
def library_attention(model: PreTrainedModel) -> Iterator[None]:
    """Lets a model, also one that is a view of another's layers, attend by what transformers itself chooses for it."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config in configs.values():
            config._attn_implementation = model.get_correct_attn_implementation(None)
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name
