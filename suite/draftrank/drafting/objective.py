"""What distillation minimises, and how close draft and target are on text kept aside.

A full-vocabulary fp32 tensor over a whole batch would take gigabytes, so the heads run over a few
positions at a time: their gradient is gathered at the final hidden states and sent through the
decoder once (the loss is a sum over positions, so nothing changes).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Objective = Literal["kl", "cross_entropy"]
LogitsOf = Callable[[Tensor], Tensor]
"""Maps hidden states [positions, hidden] to logits [positions, vocabulary]."""

_CHUNK_NUMBERS = 1 << 24
"""Numbers in one chunk of logits: 64 MiB in fp32."""


@dataclass(frozen=True, slots=True)
class Closeness:
    """Sums over positions; `of` makes means of them."""

    kl: float = 0.0
    """Sum of KL(target || draft), in nats."""
    agreeing: int = 0
    """Positions where the most likely token is the same."""
    positions: int = 0
    """How many."""

    def __add__(self, other: Closeness) -> Closeness:
        return Closeness(self.kl + other.kl, self.agreeing + other.agreeing, self.positions + other.positions)

    @property
    def mean_kl(self) -> float:
        """Nats per position."""
        return self.kl / max(self.positions, 1)

    @property
    def agreement(self) -> float:
        """Share of positions with the same most likely token."""
        return self.agreeing / max(self.positions, 1)


def chunk_positions(vocabulary: int) -> int:
    """Positions per chunk for a vocabulary."""
    return max(16, _CHUNK_NUMBERS // vocabulary)


def loss_and_gradient(
    objective: Objective, draft: Tensor, target: Tensor, next_tokens: Tensor
) -> tuple[float, Tensor]:
    """Loss summed over positions, in nats, and its gradient by the draft's logits.

    Written out rather than left to autograd, which would pass over the vocabulary twice as often: the
    gradient of both losses is the draft's distribution minus the wanted one.

    Args:
        objective: `kl`: forward KL, from the target's distribution to the draft's; `cross_entropy`:
            minus the log-likelihood of the text.
        draft: the draft's logits, float [positions, vocabulary].
        target: the target's, same shape; not looked at for `cross_entropy`.
        next_tokens: the text's next token at each position, int64 [positions]; not looked at for `kl`.

    Returns:
        the loss, and a float32 tensor of the logits' shape.
    """
    log_draft = torch.log_softmax(draft.detach().float(), -1)
    if objective == "cross_entropy":
        wanted = next_tokens[:, None]
        loss = -log_draft.gather(1, wanted).sum()
        ones = torch.ones_like(wanted, dtype=torch.float32)
        return float(loss), log_draft.exp_().scatter_add_(1, wanted, -ones)
    log_target = torch.log_softmax(target.float(), -1)
    probabilities = log_target.exp()
    loss = torch.dot(probabilities.flatten(), log_target.sub_(log_draft).flatten())
    return float(loss), log_draft.exp_().sub_(probabilities)


def backward_in_chunks(
    objective: Objective,
    draft_hidden: Tensor,
    draft_logits: LogitsOf,
    target_hidden: Tensor,
    target_logits: LogitsOf,
    next_tokens: Tensor,
    chunk: int,
) -> float:
    """Adds the gradient of the mean loss to everything `draft_hidden` came from; returns that mean.

    Args:
        objective: see `loss_and_gradient`.
        draft_hidden: the draft's final hidden states [positions, hidden], with their graph.
        draft_logits: the draft's head.
        target_hidden: the target's final hidden states [positions, hidden], without a graph.
        target_logits: the target's head.
        next_tokens: int64 [positions].
        chunk: positions at a time.
    """
    positions = len(next_tokens)
    leaves = [part.detach().requires_grad_() for part in torch.split(draft_hidden, chunk)]
    total = 0.0
    for leaf, hidden, tokens in zip(
        leaves, torch.split(target_hidden, chunk), torch.split(next_tokens, chunk), strict=True
    ):
        logits = draft_logits(leaf)
        with torch.no_grad():
            target = target_logits(hidden) if objective == "kl" else hidden
            loss, gradient = loss_and_gradient(objective, logits, target, tokens)
        logits.backward(gradient.div_(positions).to(logits.dtype))  # type: ignore[no-untyped-call]
        total += loss / positions
    draft_hidden.backward(torch.cat([_gradient(leaf) for leaf in leaves]))  # type: ignore[no-untyped-call]
    return total


@torch.no_grad()
def closeness_in_chunks(
    draft_hidden: Tensor,
    draft_logits: LogitsOf,
    target_hidden: Tensor,
    target_logits: LogitsOf,
    chunk: int,
) -> Closeness:
    """How close the two are over positions; arguments as in `backward_in_chunks`."""
    total = Closeness()
    for ours, theirs in zip(torch.split(draft_hidden, chunk), torch.split(target_hidden, chunk), strict=True):
        draft, target = draft_logits(ours), target_logits(theirs)
        kl, _ = loss_and_gradient("kl", draft, target, torch.empty(0))
        agreeing = (draft.argmax(-1) == target.argmax(-1)).sum()
        total += Closeness(kl, int(agreeing), len(ours))
    return total


def _gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad
