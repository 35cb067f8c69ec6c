"""Which proposed tokens stand, and which token follows them.

Two rules are lossless: greedy verification emits exactly the target's own greedy tokens, and
speculative sampling leaves the target's distribution unchanged (Leviathan et al. 2023,
arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318). Typical acceptance (Cai et al. 2024,
arXiv:2401.10774) is not: it trades the output's fidelity for longer accepted runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from draftrank.decoding.proposer import Proposal
from draftrank.decoding.sampling import Sampler, most_likely, most_likely_after

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from draftrank.catalog.recipe import TypicalAcceptance
    from draftrank.decoding.runtime import ChoosingRuntime

_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one verification."""

    accepted: int
    """How many proposed tokens stand, from the first on."""
    next_token: int
    """The token after them: the target's correction, or its bonus when all stand."""
    path: tuple[int, ...] | None = None
    """Their places in the proposal, where it was a tree; None: the first ones."""


def verify(
    logits: Tensor,
    proposal: Proposal,
    sampler: Sampler,
    typical: TypicalAcceptance | None = None,
    by: ChoosingRuntime | None = None,
) -> Verdict:
    """Judges one step by the lossless rule of the decoding mode, or by typical acceptance.

    Raises:
        ValueError: a tree was proposed where no rule for trees is known.

    Args:
        logits: the target's, [len(proposal.tokens) + 1, vocabulary]; row i follows i proposed tokens.
        proposal: what was proposed.
        sampler: the sequence's mode and random numbers.
        typical: the lossy rule's knobs; None for the lossless rules.
        by: the runtime that has just given the logits, if it has chosen already.
    """
    if proposal.parents is not None and (typical is not None or not sampler.mode.greedy):
        raise ValueError("trees of tokens are judged in lossless greedy decoding only")
    if typical is not None:
        return verify_typical(logits, proposal, sampler, typical)
    if not sampler.mode.greedy:
        return verify_sampling(logits, proposal, sampler)
    choices = most_likely_after(by, logits)
    return verify_greedy(choices, proposal) if proposal.parents is None else verify_tree(choices, proposal)


def verify_greedy(choices: Sequence[int], proposal: Proposal) -> Verdict:
    """Accepts as long as the proposed token is the target's most likely one.

    Args:
        choices: the target's most likely tokens, the first after no proposed one, the next after each.
        proposal: what was proposed, a chain.
    """
    accepted = 0
    for token, choice in zip(proposal.tokens, choices, strict=False):
        if token != choice:
            break
        accepted += 1
    return Verdict(accepted, choices[accepted])


def verify_tree(choices: Sequence[int], proposal: Proposal) -> Verdict:
    """Walks from the context to the target's most likely token, as long as that was proposed there; arguments as above."""
    path: list[int] = []
    place = -1
    while True:
        choice = choices[place + 1]
        found = [child for child in proposal.children(place) if proposal.tokens[child] == choice]
        if not found:
            return Verdict(len(path), choice, tuple(path))
        place = found[0]
        path.append(place)


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


def verify_typical(logits: Tensor, proposal: Proposal, sampler: Sampler, rule: TypicalAcceptance) -> Verdict:
    """Accepts token x while p(x) ≥ min(threshold, alpha · exp(-H(p))); what follows is the target's own
    choice, drawn from p or, in greedy modes, its most likely token.

    p is the mode's distribution; greedy modes, which have none, are judged by the softmax of the logits.
    The most likely token is always accepted (its probability is at least exp(-H), and alpha ≤ 1), so no
    run is shorter than the greedy rule's.
    """
    greedy = sampler.mode.greedy
    target = logits.float().softmax(dim=-1) if greedy else sampler.probabilities(logits)
    entropies = -(target * target.clamp_min(_TINY).log()).sum(dim=-1)
    bars: list[float] = (rule.alpha * (-entropies).exp()).clamp_max(rule.threshold).tolist()
    accepted = 0
    for index, token in enumerate(proposal.tokens):
        if float(target[index, token]) < bars[index]:
            break
        accepted += 1
    return Verdict(
        accepted,
        most_likely(logits[accepted : accepted + 1])[0] if greedy else sampler.draw(target[accepted]),
    )
