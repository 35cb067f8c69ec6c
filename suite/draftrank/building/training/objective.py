"""What distillation minimises, and how close draft and target are on text kept aside.

A full-vocabulary fp32 tensor over a whole batch would take gigabytes, so the heads run over a few
positions at a time: their gradient is gathered at the final hidden states and sent through the
decoder once (the loss is a sum over positions, so nothing changes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Objective = Literal["kl", "reverse_kl", "total_variation", "cross_entropy"]
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
    objective: Objective, draft: Tensor, log_target: Tensor, next_tokens: Tensor
) -> tuple[float, Tensor]:
    """Loss summed over positions and its gradient by the draft's logits.

    Written out rather than left to autograd, which would pass over the vocabulary twice as often. With the
    draft's distribution q = softmax(z) and the target's p:

    - `kl`, KL(p || q): q - p.
    - `reverse_kl`, KL(q || p): q · (log q - log p - KL(q || p)); seeks the target's modes.
    - `total_variation`, half of sum |q - p|: q · (s - sum q s) / 2 with s = sign(q - p). One minus it is
      the chance that a sampled token is accepted (Leviathan et al. 2022, arXiv:2211.17192), so this
      is what DistillSpec finds best for sampling.
    - `cross_entropy`, minus the log-likelihood of the text: q minus the token's indicator.

    Args:
        objective: which of them; in nats but for `total_variation`.
        draft: the draft's logits z, float [positions, vocabulary].
        log_target: the target's log-probabilities, float32, same shape; not looked at for `cross_entropy`.
        next_tokens: the text's next token at each position, int64 [positions]; looked at for
            `cross_entropy` only.

    Returns:
        the loss, and a float32 tensor of the logits' shape.
    """
    log_draft = torch.log_softmax(draft.detach().float(), -1)
    if objective == "cross_entropy":
        wanted = next_tokens[:, None]
        loss = -log_draft.gather(1, wanted).sum()
        ones = torch.ones_like(wanted, dtype=torch.float32)
        return float(loss), log_draft.exp_().scatter_add_(1, wanted, -ones)
    if objective == "kl":
        probabilities = log_target.exp()
        loss = torch.dot(probabilities.flatten(), (log_target - log_draft).flatten())
        return float(loss), log_draft.exp_().sub_(probabilities)
    if objective == "reverse_kl":
        ratio = log_draft - log_target
        drawn = log_draft.exp_()
        each = (drawn * ratio).sum(-1, keepdim=True)
        return float(each.sum()), ratio.sub_(each).mul_(drawn)
    drawn = log_draft.exp_()
    difference = drawn - log_target.exp()
    loss = 0.5 * difference.abs().sum()
    signs = difference.sign_()
    mean = (drawn * signs).sum(-1, keepdim=True)
    return float(loss), signs.sub_(mean).mul_(drawn).mul_(0.5)


def loss_in_chunks(
    objective: Objective,
    drafts: Sequence[Tensor],
    shares: Sequence[float],
    draft_logits: LogitsOf,
    target_hidden: Tensor,
    target_logits: LogitsOf,
    next_tokens: Tensor,
    chunk: int,
    positions: int,
) -> tuple[float, list[Tensor]]:
    """Weighted sum of the losses divided by `positions`, and its gradients by the draft's hidden states.

    Gradients of the head's own weights, where it is trained, are added on the way.

    Args:
        objective: see `loss_and_gradient`.
        drafts: the draft's final hidden states [positions, hidden], of each forward that is held to the same target.
        shares: the weight of each of these forwards.
        draft_logits: the draft's head.
        target_hidden: the target's final hidden states [positions, hidden].
        target_logits: the target's head.
        next_tokens: int64 [positions].
        chunk: positions at a time.
        positions: what the sum is divided by: the positions of the whole update.
    """
    total = 0.0
    gradients = [torch.empty_like(hidden) for hidden in drafts]
    for first in range(0, len(target_hidden), chunk):
        part = slice(first, first + chunk)
        with torch.no_grad():
            hidden = target_hidden[part]
            log_target = (
                hidden
                if objective == "cross_entropy"
                else torch.log_softmax(target_logits(hidden).float(), -1)
            )
        for ours, share, gradient in zip(drafts, shares, gradients, strict=True):
            leaf = ours[part].detach().requires_grad_()
            logits = draft_logits(leaf)
            with torch.no_grad():
                loss, by_logits = loss_and_gradient(objective, logits, log_target, next_tokens[part])
            logits.backward(by_logits.mul_(share / positions).to(logits.dtype))  # type: ignore[no-untyped-call]
            total += loss * share / positions
            assert leaf.grad is not None
            gradient[part] = leaf.grad
    return total, gradients


@torch.no_grad()
def closeness_in_chunks(
    draft_hidden: Tensor,
    draft_logits: LogitsOf,
    target_hidden: Tensor,
    target_logits: LogitsOf,
    chunk: int,
    kept: Tensor | None = None,
) -> Closeness:
    """How close the two are over positions; arguments as in `loss_in_chunks`.

    Args:
        kept: ids of the tokens that the draft's logits stand for, int64; None: all. The divergence is
            then taken among them, while agreement is with what the target says of all tokens.
    """
    total = Closeness()
    for ours, theirs in zip(torch.split(draft_hidden, chunk), torch.split(target_hidden, chunk), strict=True):
        draft, target = draft_logits(ours), target_logits(theirs)
        said = draft.argmax(-1) if kept is None else kept[draft.argmax(-1)]
        among = target if kept is None else target.index_select(-1, kept)
        kl, _ = loss_and_gradient("kl", draft, torch.log_softmax(among.float(), -1), torch.empty(0))
        agreeing = (said == target.argmax(-1)).sum()
        total += Closeness(kl, int(agreeing), len(ours))
    return total
