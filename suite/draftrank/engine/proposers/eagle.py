"""A draft that reads the target's hidden states.

Source: EAGLE (Li et al. 2024, arXiv:2401.15077), with a chain of tokens. A token is read with the target's state
before it; for tokens that the target has not seen the draft's own state stands in, and what it remembers of them is
replaced once the target has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from draftrank.engine.proposer import Proposal
from draftrank.engine.proposers.drafting import PLAIN, Drafting, SteppingModel, draft_tokens
from draftrank.errors import IncompatibleDraftError

if TYPE_CHECKING:
    from torch import Tensor

    from draftrank.engine.backends.base import Runtime
    from draftrank.engine.backends.eagle import EagleHead
    from draftrank.engine.sampling import Sampler


class EagleProposer(SteppingModel):
    """Decodes up to k tokens with the draft, one forward each."""

    reads_target = True
    _draft: EagleHead

    def __init__(self, target: Runtime, draft: EagleHead, drafting: Drafting = PLAIN) -> None:
        super().__init__(draft, drafting)
        target.keep_hidden_states(draft.layers)
        self._target = target
        self._states: Tensor | None = None
        self._known = 0
        """How many tokens of the context have their features: all of them, whenever something is proposed."""

    def begin(self, prompt: Sequence[int], sampler: Sampler, reserve: int) -> None:
        """See `Proposer.begin`; the target has just read the prompt.

        Raises:
            IncompatibleDraftError: the target's states are of another width than the draft reads.
        """
        told, wanted = self._target.hidden_states(self._draft.layers).shape[-1], self._draft.state_width
        if told != wanted:
            raise IncompatibleDraftError(
                f"the draft reads hidden states of {wanted} numbers, and the target's have {told}: use a draft that was "
                "made for this target"
            )
        self._sampler, self._states = sampler, None
        self._draft.reset()
        if not self._readable(len(prompt) + 1, 1):
            return
        read = self._read(1)
        self._states = read.new_zeros((reserve + 1, read.shape[-1]))
        self._known = 1  # nothing stands before the first token
        self._learn(len(prompt))
        self._draft.reserve(min(reserve, self._draft.context_window))
        self._draft.offer(self._states[: len(prompt)])
        self._draft.forward(prompt, keep=1)

    def propose(self, context: Sequence[int], count: int) -> Proposal:
        assert self._sampler is not None
        count = self._readable(len(context), count)
        if not count:
            self._states = None
            return Proposal([])
        assert self._states is not None
        read = self._draft.length
        self._draft.offer(self._states[read : len(context)])
        proposal = draft_tokens(self._draft, self._sampler, context[read:], count, self._drafting)
        self._draft.rollback(self._draft.length - len(context))
        return proposal

    def accept(self, tokens: Sequence[int]) -> None:
        """See `Proposer.accept`; the target has just verified."""
        self._learn(len(tokens) + 1)

    def observe(self, tokens: Sequence[int]) -> None:
        self._learn(len(tokens) + 1)

    def _learn(self, count: int) -> None:
        if self._states is None:  # the text has outgrown the draft's window
            return
        self._states[self._known : self._known + count] = self._read(count)
        self._known += count

    def _read(self, count: int) -> Tensor:
        """The target's states of the first tokens of its last forward as one each: [count, hidden]."""
        return self._draft.reduced(self._target.hidden_states(self._draft.layers)[:count])
