"""Which proposed tokens stand, and which token follows them.

Both rules are lossless: greedy verification emits exactly the target's own greedy tokens, and
speculative sampling leaves the target's distribution unchanged (Leviathan et al. 2023,
arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from draftrank.decoding.proposer import Proposal
from draftrank.decoding.sampling import Sampler

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one verification."""

    accepted: int
    """How many proposed tokens stand, from the first on."""
    next_token: int
    """The token after them: the target's correction, or its bonus when all stand."""


def verify(logits: Tensor, proposal: Proposal, sampler: Sampler) -> Verdict:
    """Judges one step by the rule that the decoding mode asks for.

    Args:
        logits: the target's, [len(proposal.tokens) + 1, vocabulary]; row i follows i proposed tokens.
        proposal: what was proposed.
        sampler: the sequence's mode and random numbers.
    """
    if sampler.mode.greedy:
        return verify_greedy(logits, proposal)
    return verify_sampling(logits, proposal, sampler)


def verify_greedy(logits: Tensor, proposal: Proposal) -> Verdict:
    """Accepts as long as the proposed token is the target's most likely one."""
    choices: list[int] = logits.argmax(dim=-1).tolist()
    accepted = 0
    for token, choice in zip(proposal.tokens, choices, strict=False):
        if token != choice:
            break
        accepted += 1
    return Verdict(accepted, choices[accepted])


def verify_sampling(logits: Tensor, proposal: Proposal, sampler: Sampler) -> Verdict:
    """Accepts token x with probability min(1, p(x)/q(x)); at the first rejection draws from
    max(p - q, 0), at the end from p."""
    target = sampler.probabilities(logits)
    for index, token in enumerate(proposal.tokens):
        likely = float(target[index, token])
        if proposal.probabilities is None:
            drafted = 1.0
        else:
            drafted = float(proposal.probabilities[index, token])
        if sampler.uniform() * drafted < likely:
            continue
        residual = target[index].clone()
        if proposal.probabilities is None:
            residual[token] = 0.0
        else:
            residual -= proposal.probabilities[index]
            residual.clamp_(min=0.0)
        # p == q up to rounding leaves nothing over; then p itself is the right distribution.
        if not bool(residual.sum() > 0.0):
            residual = target[index]
        return Verdict(index, sampler.draw(residual))
    return Verdict(len(proposal.tokens), sampler.draw(target[len(proposal.tokens)]))
