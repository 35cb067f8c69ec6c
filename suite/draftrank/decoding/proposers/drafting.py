"""Tokens from a draft model, one forward each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from draftrank.decoding.proposer import Proposal

if TYPE_CHECKING:
    from torch import Tensor

    from draftrank.decoding.runtime import Runtime
    from draftrank.decoding.sampling import Sampler


def draft_tokens(
    draft: Runtime,
    sampler: Sampler,
    unseen: Sequence[int],
    count: int,
    stop_below: float | None = None,
) -> Proposal:
    """Proposes up to `count` tokens, one forward each; the draft's last one is not fed back to it.

    The token that falls below `stop_below` is proposed and is the last. It must not be withdrawn: in
    sampling modes a draw that is thrown away because it is unlikely no longer follows the distribution
    by which verification judges it. Kept, each token is an honest draw, and whether another one follows
    is decided by tokens and probabilities that are already on the table, so the output's law stands.

    Args:
        draft: the model that proposes.
        sampler: the sequence's mode and random numbers.
        unseen: the end of the context that the draft has not been fed, at least one token.
        count: how many at most, at least 1.
        stop_below: probability below which a proposed token is the last: the draft's own of that token,
            in greedy modes by the plain softmax, else by the distribution it was drawn from.
    """
    logits = draft.feed(unseen, keep=1)
    tokens: list[int] = []
    rows: list[Tensor] = []
    while True:
        if sampler.mode.greedy:
            tokens.append(sampler.choose(logits))
            confident = stop_below is None or sampler.confidence(logits) >= stop_below
        else:
            row = sampler.probabilities(logits)
            rows.append(row)
            tokens.append(sampler.draw(row[0]))
            confident = stop_below is None or float(row[0, tokens[-1]]) >= stop_below
        if len(tokens) == count or not confident:
            return Proposal(tokens, _joined(rows), forwards=len(tokens))
        logits = draft.feed((tokens[-1],))


def _joined(rows: list[Tensor]) -> Tensor | None:
    if not rows:
        return None
    import torch

    return torch.cat(rows)
