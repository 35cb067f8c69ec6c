"""A draft that proposes the tokens which its vocabulary shares with the target's.

Source: token-level intersection (TLI), Timor et al. 2025 (arXiv:2502.05202). The draft's distribution is restricted to the
shared tokens and renormalised, and so is one over the target's vocabulary: the ordinary rules of verification apply, greedy
and sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch

from draftrank.engine.backends.base import Runtime
from draftrank.engine.proposer import Proposal
from draftrank.engine.proposers.drafting import Drafting, draft_tokens
from draftrank.engine.proposers.other_vocabulary import OtherVocabularyProposer

if TYPE_CHECKING:
    from torch import Tensor

    from draftrank.engine.token_tree import Branch, TokenTree, TreeWidth
    from draftrank.models.translation import Translation
    from draftrank.models.vocabulary import SharedTokens


class SharedTokensRuntime(Runtime):
    """A draft's runtime over the target's vocabulary: logits of tokens that are not shared are minus infinity.

    It reads the target's shared tokens by their ids, and each token of its own by its id behind the target's: the target's
    number of ids plus its own id.
    """

    name: ClassVar[str] = "shared tokens"

    def __init__(self, draft: Runtime, shared: SharedTokens, vocabulary: int) -> None:
        """Wraps a runtime.

        Args:
            draft: the draft's own, whose head answers for shared tokens only.
            shared: the tokens.
            vocabulary: how many ids the target has.
        """
        pairs = {ours: theirs for ours, theirs in shared.to_draft.items() if ours < vocabulary}
        self._draft = draft
        self._to_draft = pairs
        self._to_target = {theirs: ours for ours, theirs in pairs.items()}
        self._columns = torch.tensor(list(pairs)), torch.tensor(list(pairs.values()))
        self.vocabulary_size = vocabulary
        self.context_window = draft.context_window
        self.capabilities = replace(draft.capabilities, device=False, hidden_states=False, first_layers=False)

    @property
    def length(self) -> int:
        """See `Runtime.length`."""
        return self._draft.length

    def own(self, tokens: Sequence[int]) -> list[int]:
        """The draft's ids of tokens."""
        return [
            token - self.vocabulary_size if token >= self.vocabulary_size else self._to_draft[token]
            for token in tokens
        ]

    def reserve(self, tokens: int) -> None:
        """See `Runtime.reserve`."""
        self._draft.reserve(tokens)

    def forward(
        self, tokens: Sequence[int], keep: int | None = None, tree: TokenTree | None = None
    ) -> Tensor:
        """See `Runtime.forward`."""
        logits = self._draft.forward(self.own(tokens), keep, tree)
        targets, drafts = (columns.to(logits.device) for columns in self._columns)
        spread = logits.new_full((len(logits), self.vocabulary_size), float("-inf"))
        return spread.index_copy_(-1, targets, logits.index_select(-1, drafts))

    def rollback(self, count: int) -> None:
        """See `Runtime.rollback`."""
        self._draft.rollback(count)

    def reset(self) -> None:
        """See `Runtime.reset`."""
        self._draft.reset()

    def choices(self, count: int) -> list[int]:
        """See `Runtime.choices`."""
        return [self._to_target[token] for token in self._draft.choices(count)]

    def chain(self, unseen: Sequence[int], count: int, stop_below: float | None = None) -> Sequence[int]:
        """See `Runtime.chain`."""
        return [self._to_target[token] for token in self._draft.chain(self.own(unseen), count, stop_below)]

    def grow_tree(self, unseen: Sequence[int], count: int, width: TreeWidth) -> tuple[Sequence[Branch], int]:
        """See `Runtime.grow_tree`."""
        grown, forwards = self._draft.grow_tree(self.own(unseen), count, width)
        return [branch._replace(token=self._to_target[branch.token]) for branch in grown], forwards


class TokenIntersectionProposer(OtherVocabularyProposer):
    """Decodes up to k shared tokens with the draft, one forward each."""

    def __init__(
        self,
        draft: Runtime,
        translation: Translation,
        drafting: Drafting,
        shared: SharedTokens,
        vocabulary: int,
    ) -> None:
        """See `SharedTokensRuntime` for the draft and the last two."""
        super().__init__(draft, translation, drafting)
        self._shared = SharedTokensRuntime(draft, shared, vocabulary)
        self._known = frozenset(shared.to_draft)

    def known(self) -> frozenset[int]:
        """See `Proposer.known`."""
        return self._known

    def _drafted(
        self, context: Sequence[int], unseen: Sequence[int], count: int
    ) -> tuple[Proposal, list[int]]:
        assert self._sampler is not None
        shared = self._shared
        numbered = [shared.vocabulary_size + token for token in unseen]
        proposal = draft_tokens(shared, self._sampler, numbered, count, self._drafting)
        return proposal, shared.own(proposal.tokens) if proposal.drafted is None else []
