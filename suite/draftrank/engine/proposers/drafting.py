"""Tokens from a draft model, one forward each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from draftrank.engine.proposer import Proposal, Proposer, ProposerContext
from draftrank.engine.proposers.candidates import Candidate, branching_of, proposal_of
from draftrank.engine.token_tree import MAX_TREE_TOKENS, TokenTree, TreeWidth

if TYPE_CHECKING:
    from torch import Tensor

    from draftrank.catalog.decoding_mode import DecodingMode
    from draftrank.engine.backends.base import Runtime
    from draftrank.engine.proposer import DeviceSteps
    from draftrank.engine.sampling import Sampler
    from draftrank.engine.token_tree import Branch

MAX_RUNNERS_UP = 7
"""Tokens beside the draft's most likely one that may be proposed in its place."""
MAX_EXPANDED = 8
"""Tokens of one level of a tree that the draft is asked to go on from."""


@dataclass(frozen=True, slots=True)
class Drafting:
    """How far and how wide a model proposes."""

    stop_below: float | None = None
    """Probability below which a proposed token is the last: the draft's own of that token, in greedy modes by the plain
    softmax, else by the distribution it was drawn from. In a tree: of the token and all proposed ones before it
    together."""
    branch_above: float | None = None
    """Probability, of a token and all proposed ones before it together, from which on runners-up are proposed beside
    the most likely token, in sampling modes too. None: chains."""


PLAIN = Drafting()


def drafting_of(context: ProposerContext) -> Drafting:
    """What the recipe asks for.

    Raises:
        IncompatibleDraftError: it asks for trees, and the target's runtime verifies chains only.
    """
    return Drafting(context.stop_below_confidence, branching_of(context))


def draft_tokens(
    draft: Runtime, sampler: Sampler, unseen: Sequence[int], count: int, drafting: Drafting = PLAIN
) -> Proposal:
    """Proposes up to `count` tokens, one forward each; the draft's last one is not read by it.

    The token that falls below `stop_below` is proposed and is the last. It must not be withdrawn: in
    sampling modes a draw that is thrown away because it is unlikely no longer follows the distribution
    by which verification judges it. Kept, each token is an honest draw, and whether another one follows
    is decided by tokens and probabilities that are already on the table, so the output's law stands.

    Args:
        draft: the model that proposes.
        sampler: the sequence's mode and random numbers.
        unseen: the end of the context that the draft has not read, at least one token.
        count: how many at most, at least 1.
        drafting: how far and how wide.
    """
    if drafting.branch_above is not None and sampler.trees:
        width = TreeWidth(
            min(MAX_RUNNERS_UP + 1, draft.vocabulary_size),
            MAX_EXPANDED,
            drafting.branch_above,
            drafting.stop_below,
        )
        return _branching(draft, unseen, min(count, MAX_TREE_TOKENS - 1), width)
    stop_below = drafting.stop_below
    able = draft.capabilities
    if sampler.mode.greedy and (able.chain if stop_below is None else able.chain_stops):
        chain = draft.chain(unseen, count, stop_below)
        return Proposal(chain, forwards=len(chain))
    logits = draft.forward(unseen, keep=1)
    tokens: list[int] = []
    rows: list[Tensor] = []
    while True:
        if sampler.mode.greedy:
            tokens.append(sampler.choose(logits, draft))
            confident = stop_below is None or sampler.confidence(logits) >= stop_below
        else:
            row = sampler.probabilities(logits)
            rows.append(row)
            tokens.append(sampler.draw(row[0]))
            confident = stop_below is None or float(row[0, tokens[-1]]) >= stop_below
        if len(tokens) == count or not confident:
            return Proposal(tokens, _joined(rows), forwards=len(tokens))
        logits = draft.forward((tokens[-1],))


class SteppingModel(Proposer):
    """What proposers with a model share."""

    def __init__(self, draft: Runtime, drafting: Drafting) -> None:
        self._draft = draft
        self._drafting = drafting
        self._sampler: Sampler | None = None
        self._steps: dict[tuple[int, int, DecodingMode], DeviceSteps | None] = {}

    def runtime(self) -> Runtime:
        return self._draft

    def _readable(self, context: int, count: int) -> int:
        """How many of `count` tokens its window lets it propose behind so many others; it need not read the last."""
        return max(0, min(count, self._draft.context_window - context + 1))

    def device_steps(
        self,
        target: Runtime,
        sampler: Sampler,
        count: int,
        chain: int | None = None,
        copying: Callable[[Sequence[int], int], Proposal] | None = None,
    ) -> DeviceSteps | None:
        """See `Proposer.device_steps`, and for the last two `Runtime.device_steps`. Chains of fixed length only."""
        if self._drafting != PLAIN or not target.capabilities.device:
            return None
        key = id(target), count, sampler.mode
        if key not in self._steps:
            self._steps[key] = target.device_steps(
                self._draft, count, sampler.mode, self.propose, chain, copying
            )
        return self._steps[key]


def _branching(draft: Runtime, unseen: Sequence[int], count: int, width: TreeWidth) -> Proposal:
    """A tree, level by level, each of them one forward: of all tokens looked at the `count` most probable.

    What is more probable comes first and no token is more probable than the one before it, so that these form a tree
    (as in EAGLE-2, Li et al. 2024, arXiv:2406.16858). A draft whose runtime reads chains only goes on behind the most
    probable token of each level alone.
    """
    if draft.capabilities.tree_growth:
        grown, forwards = draft.grow_tree(unseen, count, width)
        return proposal_of(_candidates(grown), forwards)
    trees = draft.capabilities.trees
    parents = [-1]
    found: list[Candidate] = []
    forwards, rows = 1, draft.forward(unseen, keep=1)
    behind: list[Candidate | None] = [None]
    while True:
        level = _level(rows, behind, width)
        found += level
        found.sort(key=lambda one: -one.path)  # stable: of equals the earlier one stays
        del found[count:]
        on = [one for one in level if one in found and width.goes_on(one.path, first=one is level[0])]
        on = on[: width.expanded if trees else 1]
        if forwards == count or not on or len(parents) + len(on) > MAX_TREE_TOKENS:
            break
        for one in on:
            parents.append(one.parent.draft_index if one.parent else 0)
            one.draft_index = len(parents) - 1
        rows = draft.forward([one.token for one in on], tree=TokenTree(tuple(parents)) if trees else None)
        behind = list(on)
        forwards += 1
    return proposal_of(found, forwards)


def _level(rows: Tensor, behind: Sequence[Candidate | None], width: TreeWidth) -> list[Candidate]:
    """The tokens worth proposing behind each of the last level's, the most probable first; at least one."""
    likely = rows.float().softmax(-1).topk(width.most)
    level = [
        Candidate(token, parent, share * (parent.path if parent else 1.0))
        for parent, tokens, shares in zip(
            behind, likely.indices.tolist(), likely.values.tolist(), strict=True
        )
        for token, share in zip(tokens, shares, strict=True)
    ]
    level.sort(key=lambda one: -one.path)
    return [level[0], *(one for one in level[1:] if one.path >= width.branch_above)]


def _candidates(grown: Sequence[Branch]) -> list[Candidate]:
    """A tree that a runtime has grown; those before come first."""
    found: list[Candidate] = []
    for one in grown:
        parent = found[one.parent] if one.parent >= 0 else None
        found.append(Candidate(one.token, parent, 0.0, one.draft_index))
    return found


def _joined(rows: list[Tensor]) -> Tensor | None:
    if not rows:
        return None
    import torch

    return torch.cat(rows)
