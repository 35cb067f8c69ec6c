"""Attention of a few new tokens over many held ones, without copying keys and values.

Where several query heads share one head of keys and values, transformers either repeats the shared heads in
memory or takes a kernel that does not know such groups. For one bf16 token on a CPU that kernel needs six
times as long as the fused one, from some hundred held tokens on a good part of the whole forward: a baseline
slowed down like that makes any draft look good. Seen as more queries of the shared head, a group needs
neither (for one token transformers does so itself where a mask is given).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "draftrank_grouped"
LIBRARY = "sdpa"
"""transformers' own, for its reference arms."""
MOST_QUERIES = 96
"""Longer feeds are prefills, where repeating the shared heads costs little beside the products."""


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
        key: [batch, shared heads, held, size].
        value: like `key`.
        attention_mask: [batch, 1, new, held], True or 0 where a query sees a key; None: all, or, for
            several new tokens, the causal pattern.
        dropout: share of weights dropped.
        scaling: factor of the scores; None: one over the root of the size.
        is_causal: passed on.
        named: passed on.

    Returns:
        [batch, new, heads, size], and None for the weights.
    """
    batch, heads, new, size = query.shape
    group = heads // key.shape[1]
    causal = attention_mask is None and new > 1
    shared = attention_mask is None or attention_mask.shape[1] == 1
    if group == 1 or new > MOST_QUERIES or causal or not shared or named.get("position_bias") is not None:
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


def use_attention(model: PreTrainedModel, name: str) -> str:
    """Makes a model, and every view of it, attend by a registered function; returns the one before."""
    before = str(model.config._attn_implementation)
    if before != name:
        model.set_attn_implementation(name)
    return before
