"""Tokens from a draft model, one forward each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from draftrank.decoding.proposer import Proposal, ProposerContext
from draftrank.decoding.runtime import TreeRuntime
from draftrank.errors import IncompatibleDraftError

if TYPE_CHECKING:
    from torch import Tensor

    from draftrank.decoding.runtime import Runtime
    from draftrank.decoding.sampling import Sampler

MOST_RUNNERS_UP = 7
"""Tokens beside the draft's most likely one that may be proposed in its place."""


@dataclass(frozen=True, slots=True)
class Drafting:
    """How far and how wide a model proposes."""

    stop_below: float | None = None
    """Probability below which a proposed token is the last: the draft's own of that token, in greedy modes by the plain
    softmax, else by the distribution it was drawn from."""
    branch_above: float | None = None
    """Probability, of a token and all proposed ones before it together, from which on runners-up are proposed beside
    the most likely token; greedy modes only. None: chains."""


PLAIN = Drafting()


def drafting_of(context: ProposerContext) -> Drafting:
    """What the recipe asks for.

    Raises:
        IncompatibleDraftError: it asks for trees, and the target's runtime verifies chains only.
    """
    branch_above = context.branch_above_probability
    if branch_above is not None and not isinstance(context.target, TreeRuntime):
        raise IncompatibleDraftError(
            f"the runtime {context.target.name} verifies chains of tokens only: leave branch_above_probability out"
        )
    return Drafting(context.stop_below_confidence, branch_above)


def draft_tokens(
    draft: Runtime, sampler: Sampler, unseen: Sequence[int], count: int, drafting: Drafting = PLAIN
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
        drafting: how far and how wide.
    """
    if drafting.branch_above is not None and sampler.mode.greedy:
        return _branching(draft, unseen, count, drafting, drafting.branch_above)
    stop_below = drafting.stop_below
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


@dataclass(frozen=True, slots=True)
class _Candidate:
    token: int
    parent: int
    """Place of the token before it in the chain; -1: the context."""
    path: float
    """Probability of it and all before it."""
    runner_up: bool
    """Whether it stands beside the chain."""


def _branching(
    draft: Runtime, unseen: Sequence[int], count: int, drafting: Drafting, branch_above: float
) -> Proposal:
    """The chain of most likely tokens with runners-up as leaves beside it: of all of them the `count` most probable.

    What is more probable comes first and no token is more probable than the one before it, so that these form a tree
    (as in EAGLE-2, Li et al. 2024, arXiv:2406.16858). Runners-up are not drafted on: that would take a forward each.
    """
    chain: list[_Candidate] = []
    runners: list[_Candidate] = []
    path, logits = 1.0, draft.feed(unseen, keep=1)
    while True:
        likely = logits[-1].float().softmax(-1).topk(min(MOST_RUNNERS_UP + 1, logits.shape[-1]))
        (best, *others), (token, *tokens) = likely.values.tolist(), likely.indices.tolist()
        before = len(chain) - 1
        runners += [
            _Candidate(other, before, path * share, runner_up=True)
            for other, share in zip(tokens, others, strict=True)
            if path * share >= branch_above
        ]
        path *= best
        chain.append(_Candidate(token, before, path, runner_up=False))
        unsure = drafting.stop_below is not None and best < drafting.stop_below
        if len(chain) == count or unsure:
            break
        logits = draft.feed((token,))
    # sorting is stable: of equals those of the chain, and the earlier ones, stay
    kept = sorted([*chain, *runners], key=lambda one: -one.path)[:count]
    kept.sort(key=lambda one: (one.runner_up, one.parent))
    tree = [one.parent for one in kept]
    is_chain = tree == list(range(-1, len(kept) - 1))
    return Proposal(
        [one.token for one in kept], forwards=len(chain), parents=None if is_chain else tuple(tree)
    )


def _joined(rows: list[Tensor]) -> Tensor | None:
    if not rows:
        return None
    import torch

    return torch.cat(rows)
