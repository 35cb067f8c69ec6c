"""A step's proposal against the same draft with a cache that has just read the text anew.

A draft's state must be what its context says. A stale one lowers acceptance and nothing else: the output stays the
target's.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.decoding.sampling import Sampler

if TYPE_CHECKING:
    from torch import Tensor

    from draftrank.decoding.proposer import Proposal, Proposer
    from draftrank.decoding.runtime import Runtime


class _Asked(Sampler):
    """Lets a draft propose given tokens, whatever it would choose, and notes how far each lies below its best one.

    Drafts that draw are asked for each token by the host, one forward each, in every backend.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__(DecodingMode(temperature=1.0))
        self._tokens = tokens
        self._chosen = 0
        self.gaps: list[float] = []

    def probabilities(self, logits: Tensor) -> Tensor:
        row, place = logits[-1].float(), len(self.gaps)
        self._chosen = self._tokens[place] if place < len(self._tokens) else int(row.argmax())
        self.gaps.append(float(row.max() - row[self._chosen]))
        return logits.new_ones(logits.shape)  # always confident, so that it goes on

    def draw(self, probabilities: Tensor) -> int:
        return self._chosen


def fresh_gap(
    target: Runtime,
    proposer: Proposer,
    prompt: Sequence[int],
    output: Sequence[int],
    proposal: Proposal,
    count: int,
) -> float | None:
    """By how much a fresh cache of the draft prefers other tokens to those of a greedy proposal.

    Of a tree, the path that leads is looked at: the draft's most likely token, and the most likely one behind each.

    Args:
        target: its sequence is lost.
        proposer: what proposed; it begins anew, and is told of the output as of tokens that others proposed.
        prompt: what the sequence began with.
        output: what stood before the step, at least one token.
        proposal: the step's.
        count: how many tokens it was asked for.

    Returns:
        the largest gap of its tokens to the draft's best ones, in logits; 0 for copies that are the same ones. None where no
        gap is known: other tokens were copied, or the draft cannot propose these.
    """
    leading = [
        token
        for place, token in enumerate(proposal.tokens)
        if proposal.parents is None or proposal.parents[: place + 1] == tuple(range(-1, place))
    ]
    has_model = proposer.runtime() is not None
    asked = _Asked(leading)
    reserve = len(prompt) + len(output) + count
    if has_model:
        target.reset()
        target.reserve(reserve)
        target.feed(prompt, keep=1)
    proposer.begin(prompt, asked if has_model else Sampler(DecodingMode()), reserve)
    if has_model and len(output) > 1:
        target.feed(output[:-1], keep=1)
        proposer.watch(output[1:-1])
    found = proposer.propose([*prompt, *output], count)
    if not asked.gaps:
        same = list(found.tokens) == list(proposal.tokens) and found.parents == proposal.parents
        return 0.0 if same else None
    gap = max(asked.gaps[: len(leading)], default=0.0)
    return gap if isfinite(gap) else None
