"""A step's proposal against the same draft with a cache that has just read the text anew.

A draft's state must be what its context says. A stale one lowers acceptance and nothing else: the output stays the
target's.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.engine.sampling import Sampler

if TYPE_CHECKING:
    from torch import Tensor

    from draftrank.engine.backends.base import Runtime
    from draftrank.engine.proposer import Proposal, Proposer


class _Asked(Sampler):
    """Lets a draft propose given tokens, whatever it would choose, and notes how far each lies below its best one.

    Drafts that draw are asked for each token by the host, one forward each, in every backend.
    """

    trees = False

    def __init__(self) -> None:
        super().__init__(DecodingMode(temperature=1.0))
        self._tokens: Sequence[int] = ()
        self._chosen = 0
        self.gaps: list[float] = []

    def ask(self, tokens: Sequence[int]) -> None:
        """From now on these are asked for, and then the draft's own."""
        self._tokens, self.gaps = tokens, []

    def probabilities(self, logits: Tensor) -> Tensor:
        row, index = logits[-1].float(), len(self.gaps)
        self._chosen = self._tokens[index] if index < len(self._tokens) else int(row.argmax())
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
) -> tuple[float | None, float]:
    """By how much a fresh cache of the draft prefers other tokens to those of a greedy proposal.

    Of a tree, the path that leads is looked at: the draft's most likely token, and the most likely one behind each. The draft
    reads the output in one forward. If it then prefers another token it reads it again, one token a forward, since
    rounding depends on that.

    Args:
        target: its sequence is lost, where the proposer reads it.
        proposer: what proposed; it begins anew, and is told of the output as of tokens that others proposed.
        prompt: what the sequence began with.
        output: what stood before the step, at least one token.
        proposal: the step's.
        count: how many tokens it was asked for.

    Returns:
        the largest gap of the proposed tokens to the draft's best ones, in logits, the smaller one of both readings; 0 for
        copies that are the same ones; None where no gap is known: other tokens were copied, or the draft cannot propose
        these. And by how much the gap of a token differs at most between the readings; 0 with one.
    """
    in_one = _gaps(target, proposer, prompt, output, proposal, count, singly=False)
    if in_one is not None and not any(in_one):
        return 0.0, 0.0
    by_one = _gaps(target, proposer, prompt, output, proposal, count, singly=True)
    if in_one is None or by_one is None or not all(map(isfinite, (*in_one, *by_one))):
        return None, 0.0
    rounding = max((abs(a - b) for a, b in zip(in_one, by_one, strict=True)), default=0.0)
    return min(max(gaps, default=0.0) for gaps in (in_one, by_one)), rounding


def _gaps(
    target: Runtime,
    proposer: Proposer,
    prompt: Sequence[int],
    output: Sequence[int],
    proposal: Proposal,
    count: int,
    *,
    singly: bool,
) -> list[float] | None:
    """Gaps of the leading path's tokens in one reading; none for the same copies, None for others."""
    leading = [
        token
        for index, token in enumerate(proposal.tokens)
        if proposal.parents is None or proposal.parents[: index + 1] == tuple(range(-1, index))
    ]
    draft, asked, text = proposer.runtime(), _Asked(), [*prompt, *output]
    reserve = len(text) + count
    if draft is None:
        proposer.begin(prompt, Sampler(DecodingMode()), reserve)
    else:
        if proposer.reads_target:
            target.reset()
            target.reserve(reserve)
            target.forward(prompt, keep=1)
        proposer.begin(prompt, asked, reserve)
        if len(output) > 1:
            if proposer.reads_target:
                target.forward(output[:-1], keep=1)
            proposer.observe(output[1:-1])
        for end in range(len(prompt) + 1, len(text) if singly else 0):
            if draft.length < end:
                proposer.propose(text[:end], 1)
    asked.ask(leading)
    found = proposer.propose(text, count)
    if not asked.gaps:
        same = list(found.tokens) == list(proposal.tokens) and found.parents == proposal.parents
        return [] if same else None
    return asked.gaps[: len(leading)]
