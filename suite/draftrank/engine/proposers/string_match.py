"""A draft that writes text, which is proposed in the target's tokens.

Source: string-level exact match (SLEM), Timor et al. 2025 (arXiv:2502.05202). The draft takes its most likely tokens of its
whole vocabulary, in sampling modes too. The proposal is then a function of the context alone, a distribution with all mass on
one token, and the rule of speculative sampling for it is exact match: the target draws its own token, and a proposed one
stands where it is the same. A text drawn at random would be judged by the same rule without loss, since the target draws
independently of it, but the most likely text is accepted most often.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.engine.proposer import Proposal
from draftrank.engine.proposers.drafting import Drafting, draft_tokens
from draftrank.engine.proposers.other_vocabulary import OtherVocabularyProposer
from draftrank.engine.sampling import Sampler

if TYPE_CHECKING:
    from draftrank.engine.backends.base import Runtime
    from draftrank.models.translation import Translation


class StringMatchProposer(OtherVocabularyProposer):
    """Decodes up to k tokens of the draft's own, one forward each, and proposes up to k of the target's."""

    def __init__(self, draft: Runtime, translation: Translation, drafting: Drafting) -> None:
        super().__init__(draft, translation, drafting)
        self._most_likely = Sampler(DecodingMode())

    def known(self) -> frozenset[int]:
        """See `Proposer.known`."""
        target, draft = self._translation.target, self._translation.draft
        return frozenset(token for token, text in target.of_token.items() if draft.can_write(text))

    def _drafted(
        self, context: Sequence[int], unseen: Sequence[int], count: int
    ) -> tuple[Proposal, list[int]]:
        drafted = draft_tokens(self._draft, self._most_likely, unseen, count, self._drafting)
        own = list(drafted.tokens)
        return Proposal(self._translation.said(context, own)[:count], forwards=drafted.forwards), own
