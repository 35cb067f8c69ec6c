"""Text as the draft would write it, for training on its own mistakes (DistillSpec's on-policy data,
Zhou et al. 2023, arXiv:2310.08461; GKD, Agarwal et al. 2023, arXiv:2306.13649)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from draftrank.models.batch_decoding import BatchDecoder

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
    written = tokens.clone()
    places = own[:, 1:].any(0).nonzero().flatten() + 1
    if not len(places):
        return written
    decoder = BatchDecoder(model, tokens.shape[1])
    done = 0
    for position in range(int(places[0]), int(places[-1]) + 1):
        scores = decoder.next_logits(written[:, done:position]).float()
        done = position
        if temperature == 0.0:
            said = scores.argmax(-1)
        else:
            chances = torch.softmax(scores / temperature, -1)
            said = torch.multinomial(chances, 1, generator=generator).squeeze(1)
        written[:, position] = torch.where(own[:, position], said, written[:, position])
    return written
