"""Draft models with another tokenizer than the target's, without loss.

Two ways to propose (Timor et al. 2025, arXiv:2502.05202): tokens that both vocabularies have (`token_intersection`), or
text that the target's tokenizer turns into its tokens (`string_match`). In either the draft reads the context as text, in
its own tokens. What it reads decides how often it is right, never what the target emits.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.engine.backends.base import Runtime
from draftrank.engine.proposer import Proposal
from draftrank.engine.proposers.drafting import Drafting, SteppingModel, draft_tokens
from draftrank.engine.sampling import Sampler

if TYPE_CHECKING:
    from torch import Tensor

    from draftrank.engine.token_tree import Branch, TokenTree, TreeWidth
    from draftrank.models.translation import Translation
    from draftrank.models.vocabulary import SharedTokens


class OtherVocabularyProposer(SteppingModel):
    """Decodes with a draft that reads the context in its own tokens.

    The draft's tokens of a context can differ from those of a shorter one in more than its end, so its KV cache is rolled
    back to what both have in common, and the rest is read anew.
    """

    translates = True

    def __init__(self, draft: Runtime, translation: Translation, drafting: Drafting) -> None:
        super().__init__(draft, drafting)
        self._translation = translation
        self._cached: list[int] = []
        """The draft's tokens in its KV cache."""

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

    def device_steps(self, *_: object, **__: object) -> None:
        """See `Proposer.device_steps`; the host translates in each step."""
        return


class StringMatchProposer(OtherVocabularyProposer):
    """Decodes up to k tokens of the draft's own, one forward each, and proposes up to k of the target's.

    Source: string-level exact match (SLEM), Timor et al. 2025 (arXiv:2502.05202). The draft takes its most likely tokens of
    its whole vocabulary, in sampling modes too. The proposal is then a function of the context alone, a distribution with
    all mass on one token, and the rule of speculative sampling for it is exact match: the target draws its own token, and a
    proposed one stands where it is the same. A text drawn at random would be judged by the same rule without loss, since
    the target draws independently of it, but the most likely text is accepted most often.
    """

    def __init__(self, draft: Runtime, translation: Translation, drafting: Drafting) -> None:
        super().__init__(draft, translation, drafting)
        self._most_likely = Sampler(DecodingMode())

    def known(self) -> frozenset[int]:
        target, draft = self._translation.target, self._translation.draft
        return frozenset(token for token, text in target.of_token.items() if draft.can_write(text))

    def _drafted(
        self, context: Sequence[int], unseen: Sequence[int], count: int
    ) -> tuple[Proposal, list[int]]:
        drafted = draft_tokens(self._draft, self._most_likely, unseen, count, self._drafting)
        own = list(drafted.tokens)
        return Proposal(self._translation.said(context, own)[:count], forwards=drafted.forwards), own


class SharedTokensRuntime(Runtime):
    """A draft's runtime over the target's vocabulary: logits of tokens that are not shared are minus infinity.

    It reads the target's shared tokens by their ids, and each token of its own by its id behind the target's: the target's
    number of ids plus its own id.
    """

    name: ClassVar[str] = "shared tokens"

    def __init__(self, draft: Runtime, shared: SharedTokens, vocabulary: int) -> None:
        """Wraps the draft's own, whose head answers for shared tokens only; `vocabulary`: how many ids the target has."""
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
        return self._draft.length

    def own(self, tokens: Sequence[int]) -> list[int]:
        """The draft's ids of tokens."""
        return [
            token - self.vocabulary_size if token >= self.vocabulary_size else self._to_draft[token]
            for token in tokens
        ]

    def reserve(self, tokens: int) -> None:
        self._draft.reserve(tokens)

    def forward(
        self, tokens: Sequence[int], keep: int | None = None, tree: TokenTree | None = None
    ) -> Tensor:
        logits = self._draft.forward(self.own(tokens), keep, tree)
        targets, drafts = (columns.to(logits.device) for columns in self._columns)
        spread = logits.new_full((len(logits), self.vocabulary_size), float("-inf"))
        return spread.index_copy_(-1, targets, logits.index_select(-1, drafts))

    def rollback(self, count: int) -> None:
        self._draft.rollback(count)

    def reset(self) -> None:
        self._draft.reset()

    def choices(self, count: int) -> list[int]:
        return [self._to_target[token] for token in self._draft.choices(count)]

    def chain(self, unseen: Sequence[int], count: int, stop_below: float | None = None) -> Sequence[int]:
        return [self._to_target[token] for token in self._draft.chain(self.own(unseen), count, stop_below)]

    def grow_tree(self, unseen: Sequence[int], count: int, width: TreeWidth) -> tuple[Sequence[Branch], int]:
        grown, forwards = self._draft.grow_tree(self.own(unseen), count, width)
        return [branch._replace(token=self._to_target[branch.token]) for branch in grown], forwards


class TokenIntersectionProposer(OtherVocabularyProposer):
    """Decodes up to k shared tokens with the draft, one forward each.

    Source: token-level intersection (TLI), Timor et al. 2025 (arXiv:2502.05202). The draft's distribution is restricted to
    the shared tokens and renormalised, and so is one over the target's vocabulary: the ordinary rules of verification
    apply, greedy and sampling.
    """

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
        return self._known

    def _drafted(
        self, context: Sequence[int], unseen: Sequence[int], count: int
    ) -> tuple[Proposal, list[int]]:
        assert self._sampler is not None
        shared = self._shared
        numbered = [shared.vocabulary_size + token for token in unseen]
        proposal = draft_tokens(shared, self._sampler, numbered, count, self._drafting)
        return proposal, shared.own(proposal.tokens) if proposal.drafted is None else []


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens of two sequences are equal."""
    shorter = min(len(one), len(other))
    return next((index for index in range(shorter) if one[index] != other[index]), shorter)
