"""Which proposed tokens stand, and which token follows them.

Two rules are lossless. What a proposer is certain of, chain or tree, stands where the target chooses it by itself: its
most likely token, or when sampling one drawn from its distribution. The output is then the one that it has alone, in
sampling modes with the same random numbers. What a draft drew is judged by speculative sampling, which leaves the
target's distribution unchanged (Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318).

No lossless rule accepts more of a tree that is certain: a path of it can stand no more often than the target's text takes
it, and here it stands that often. Trees that are drawn need other rules (SpecInfer, Miao et al. 2024, arXiv:2305.09781;
SpecTr, Sun et al. 2023, arXiv:2310.15141; Traversal Verification, Weng et al. 2025, arXiv:2505.12398), which this engine
does not have.

Typical acceptance (Cai et al. 2024, arXiv:2401.10774) is not lossless: it trades the output's fidelity for longer
accepted runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from draftrank.engine.proposer import Proposal
from draftrank.engine.sampling import Sampler, most_likely, most_likely_after, pick

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from draftrank.catalog.recipe import TypicalAcceptance
    from draftrank.engine.backends.base import Runtime

_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one verification."""

    accepted: int
    """How many proposed tokens stand, from the first on."""
    next_token: int
    """The token after them: the target's correction, or its bonus when all stand."""
    path: tuple[int, ...] | None = None
    """Their indices in the proposal; None: the first ones."""


def verify(
    logits: Tensor,
    proposal: Proposal,
    sampler: Sampler,
    typical: TypicalAcceptance | None = None,
    by: Runtime | None = None,
) -> Verdict:
    """Judges one step by the lossless rule of the decoding mode, or by typical acceptance.

    Raises:
        ValueError: typical acceptance was asked to judge a tree.

    Args:
        logits: the target's, [len(proposal.tokens) + 1, vocabulary]; row i follows i proposed tokens.
        proposal: what was proposed.
        sampler: the sequence's mode and random numbers.
        typical: the lossy rule's knobs; None for the lossless rules.
        by: the runtime that has just given the logits.
    """
    if typical is not None:
        if proposal.parents is not None:
            raise ValueError("typical acceptance judges no trees of tokens")
        return verify_typical(logits, proposal, sampler, typical)
    if sampler.mode.greedy:
        return verify_choices(most_likely_after(by, logits).__getitem__, proposal)
    if proposal.probabilities is None:
        return verify_choices(lambda row: sampler.choose(logits[row : row + 1]), proposal)
    return verify_drawn(logits, proposal, sampler)


def verify_choices(choose: Callable[[int], int], proposal: Proposal) -> Verdict:
    """Walks from the context along the target's own choices, as long as they were proposed.

    Args:
        choose: the target's choice after so many first tokens of the proposal, 0 for the context. It is asked once for each
            token that is emitted, in their order, so that a random choice has the random number that it has without a draft.
        proposal: a chain or a tree.
    """
    path: list[int] = []
    index = -1
    while True:
        choice = choose(index + 1)
        found = [child for child in proposal.children(index) if proposal.tokens[child] == choice]
        if not found:
            return Verdict(len(path), choice, tuple(path))
        index = found[0]
        path.append(index)


def verify_drawn(logits: Tensor, proposal: Proposal, sampler: Sampler) -> Verdict:
    """Draws the target's choices coupled to the chain that a draft drew, and accepts as long as they agree."""
    assert proposal.probabilities is not None
    target = sampler.probabilities(logits)
    proposed = _on_device(proposal, target)
    uniforms = sampler.uniforms(len(logits)).to(target.device)
    choices = coupled(target, proposal.probabilities.to(target.device), proposed, uniforms).tolist()
    return verify_choices(choices.__getitem__, proposal)


def coupled(
    target: Tensor, drafted: Tensor, proposed: Tensor, uniforms: Tensor, offered: Tensor | None = None
) -> Tensor:
    """The target's choices, each drawn from its own distribution so that it is the proposed token as often as can be.

    Proposed token x is chosen with probability min(1, p(x)/q(x)); where it is not, the choice is drawn from max(p - q, 0),
    and behind the last one from p. What is emitted, all choices up to the first that was not proposed, follows the target's
    distribution whatever q was (Leviathan et al. 2023, appendix A.1). Waits for no device, so that a recorded graph may hold
    it.

    Args:
        target: p, float32 [k + 1, vocabulary]; row i follows i proposed tokens.
        drafted: q, float32 [k, vocabulary].
        proposed: int64 [k].
        uniforms: float32 [k + 1], in [0, 1).
        offered: int64, one number: how many were proposed, where it is not k.

    Returns:
        int64 [k + 1]: valid up to the first choice that is not what was proposed.
    """
    count = len(proposed)
    if not count:
        return pick(target, uniforms)
    indices = torch.arange(count + 1, device=target.device)
    given, column = target[:-1], proposed[:, None]
    left = (given - drafted).clamp_(min=0.0)
    asked = uniforms[:-1] * drafted.gather(-1, column)[:, 0].double()
    likely, over = given.gather(-1, column)[:, 0], left.sum(-1)
    # Where p equals q up to rounding nothing is left to draw from: x, drawn from q, is as good as drawn from p.
    stands = (asked < likely) | ((over <= 0.0) & (likely > 0.0))
    end = indices[-1:] if offered is None else offered.view(1)
    stands &= indices[:-1] < end
    accepted = stands.long().cumprod(0).sum(0, keepdim=True)
    row = accepted.clamp(max=count - 1)
    replaces = (accepted < end) & (over.index_select(0, row) > 0.0)
    shares = torch.where(replaces[:, None], left.index_select(0, row), target.index_select(0, accepted))
    last = pick(shares, uniforms[-1:])
    return torch.where(indices == accepted, last, torch.cat([proposed, proposed[-1:]]))


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
    bars = (rule.alpha * (-entropies).exp()).clamp_max(rule.threshold)
    proposed = _on_device(proposal, target)
    stands: list[bool] = (target[:-1].gather(-1, proposed[:, None])[:, 0] >= bars[:-1]).tolist()
    accepted = stands.index(False) if False in stands else len(stands)
    return Verdict(
        accepted,
        most_likely(logits[accepted : accepted + 1])[0] if greedy else sampler.draw(target[accepted]),
    )


def _on_device(proposal: Proposal, beside: Tensor) -> Tensor:
    """What was proposed, int64 [k], where another tensor is."""
    return torch.tensor(proposal.tokens, dtype=torch.int64, device=beside.device)
