"""Draft models with another tokenizer than the target's, without loss.

Two ways to propose (Timor et al. 2025, arXiv:2502.05202): tokens that both vocabularies have (`token_intersection`), or
text that the target's tokenizer turns into its tokens (`string_match`). In either the draft reads the context as text, in
its own tokens. What it reads decides how often it is right, never what the target emits.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from draftrank.engine.proposer import Proposal
from draftrank.engine.proposers.drafting import Drafting, SteppingModel

if TYPE_CHECKING:
    from draftrank.engine.backends.base import Runtime
    from draftrank.engine.sampling import Sampler
    from draftrank.models.translation import Translation


class OtherVocabularyProposer(SteppingModel):
    """Decodes with a draft that reads the context in its own tokens.

    The draft's tokens of a context can differ from those of a shorter one in more than its end, so its KV cache is rolled
    back to what both have in common, and the rest is read anew.
    """

    def __init__(self, draft: Runtime, translation: Translation, drafting: Drafting) -> None:
        super().__init__(drafting)
        self._draft = draft
        self._translation = translation
        self._sampler: Sampler | None = None
        self._cached: list[int] = []
        """The draft's tokens in its KV cache."""

    @property
    def translates(self) -> bool:
        """See `Proposer.translates`."""
        return True

    @abstractmethod
    def _drafted(
        self, context: Sequence[int], unseen: Sequence[int], count: int
    ) -> tuple[Proposal, list[int]]:
        """What is proposed, in the target's tokens, and the draft's own tokens behind the context as far as they are a chain.

        Args:
            context: the target's tokens.
            unseen: the end of the draft's tokens of it, at least one, which the draft is to read first.
            count: how many tokens at most.
        """

    @abstractmethod
    def known(self) -> frozenset[int]:
        """See `Proposer.known`."""

    def begin(self, prompt: Sequence[int], sampler: Sampler, reserve: int) -> None:
        """See `Proposer.begin`; prefills the draft, unless its window is too short to propose anything."""
        self._sampler = sampler
        self._translation.begin()
        self._draft.reset()
        self._cached = []
        own = self._translation.read(prompt)
        if own and self._readable(len(own) + 1, 1):
            expected = len(own) * reserve // max(1, len(prompt))
            self._draft.reserve(min(max(expected, reserve), self._draft.context_window))
            self._draft.forward(own, keep=1)
            self._cached = own

    def propose(self, context: Sequence[int], count: int) -> Proposal:
        """See `Proposer.propose`."""
        own = self._translation.read(context)
        count = self._readable(len(own), count) if own else 0
        if not count:
            return Proposal([])
        same = min(common_prefix(self._cached, own), len(own) - 1)
        self._draft.rollback(self._draft.length - same)
        proposal, chain = self._drafted(context, own[same:], count)
        if proposal.parents is not None or proposal.drafted is not None:  # a tree
            self._draft.rollback(self._draft.length - len(own))
        self._cached = [*own, *chain][: self._draft.length]
        return proposal

    def runtime(self) -> Runtime:
        """See `Proposer.runtime`."""
        return self._draft

    def device_steps(self, *_: object, **__: object) -> None:
        """See `Proposer.device_steps`; the host translates in each step."""
        return


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens of two sequences are equal."""
    for place, (ours, theirs) in enumerate(zip(one, other, strict=False)):
        if ours != theirs:
            return place
    return min(len(one), len(other))
