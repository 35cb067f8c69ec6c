"""Trees of tokens as proposals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from draftrank.engine.proposer import Proposal, ProposerContext
from draftrank.errors import IncompatibleDraftError


@dataclass(eq=False, slots=True)
class Candidate:
    """A token of a tree."""

    token: int
    parent: Candidate | None
    """The token before it; None: the context."""
    path: float
    """Probability of it and all before it."""
    draft_index: int = 0
    """In the draft's tree, once it was read; the context's last token has 0."""


def branching_of(context: ProposerContext) -> float | None:
    """From which probability on the recipe asks for runners-up; None: for chains.

    Raises:
        IncompatibleDraftError: it asks for trees, and the target's runtime verifies chains only.
        UnsupportedModelError: it asks for trees, and the target's runtime does not read them as its model reads each branch.
    """
    branch_above = context.branch_above_probability
    if branch_above is None:
        return None
    if not context.target.capabilities.trees:
        raise IncompatibleDraftError(
            f"the backend {context.target.name} verifies chains of tokens only with this target: leave "
            "branch_above_probability out"
        )
    from draftrank.engine.backends.own_forward import check_trees

    check_trees(context.target)
    return branch_above


def proposal_of(found: Sequence[Candidate], forwards: int = 0) -> Proposal:
    """Candidates, the most probable first, as a proposal: the likeliest path leads, so that what usually stands needs no
    moving in the target's cache."""
    path: list[Candidate] = []
    for one in found:
        if one.parent is (path[-1] if path else None):
            path.append(one)
    ordered = [*path, *(one for one in found if one not in path)]
    indices: dict[Candidate | None, int] = {one: index for index, one in enumerate(ordered)}
    indices[None] = -1
    tree = tuple(indices[one.parent] for one in ordered)
    is_chain = tree == tuple(range(-1, len(ordered) - 1))
    return Proposal(
        [one.token for one in ordered],
        forwards=forwards,
        parents=None if is_chain else tree,
        drafted=tuple(one.draft_index for one in ordered),
    )
