"""Text as the draft would write it, for training on its own mistakes (DistillSpec's on-policy data,
Zhou et al. 2023, arXiv:2310.08461; GKD, Agarwal et al. 2023, arXiv:2306.13649)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def rewritten(
    model: PreTrainedModel,
    tokens: Tensor,
    own: Tensor,
    temperature: float,
    generator: torch.Generator,
) -> Tensor:
    """The sequences with some positions written by the model, left to right; the others stay.

    Args:
        model: who writes.
        tokens: int64 [sequences, length].
        own: bool, same shape: the positions to write; the first is never written.
        temperature: 0 takes the most likely token.
        generator: random numbers, on the model's device.

    Returns:
        int64 [sequences, length].
    """
    from transformers import StaticCache

    written = tokens.clone()
    length = tokens.shape[1]
    places = own[:, 1:].any(0).nonzero().flatten() + 1
    if not len(places):
        return written
    cache = StaticCache(config=model.config, max_cache_len=length)
    done = 0
    for position in range(int(places[0]), int(places[-1]) + 1):
        output = model(
            input_ids=written[:, done:position], past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        done = position
        scores = output.logits[:, -1].float()
        if temperature == 0.0:
            said = scores.argmax(-1)
        else:
            chances = torch.softmax(scores / temperature, -1)
            said = torch.multinomial(chances, 1, generator=generator).squeeze(1)
        written[:, position] = torch.where(own[:, position], said, written[:, position])
    return written
