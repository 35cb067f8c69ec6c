"""Copy what most often followed the longest run of last tokens, as far as it can be trusted.

Prompt lookup takes the most recent place; where a run has stood several times, the places may disagree. Here they
vote, and the share that agrees says how far to copy. Where a recipe branches, what the minority says is verified beside
it. Source: SuffixDecoding (Oliaro et al. 2024, arXiv:2411.04975), with the context alone: what a draft remembers of other
prompts would make each result depend on those before it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from math import ceil
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from draftrank.catalog.draft import DraftBase
from draftrank.catalog.programs import ProgramUse
from draftrank.engine.proposer import Proposal, Proposer, ProposerContext
from draftrank.engine.proposers.candidates import Candidate, branching_of, proposal_of

MinProbability = Annotated[float, Field(ge=0.0, le=1.0)]
DEFAULT_TRUST = 1.0
"""Tokens proposed for each that matches, where a recipe does not say."""
_MAX_VOTERS = 64
"""Earlier places that may vote, the most recent ones: of more, each says little."""


class SuffixDraft(DraftBase):
    """Suffix decoding: copies the continuation that most earlier occurrences of the context's suffix agree
    on; a longer match is copied further. Needs no model."""

    technique: ClassVar[str] = "suffix"
    branches: ClassVar[bool] = True

    kind: Literal["suffix"]
    max_match: Annotated[int, Field(ge=1, le=256)] = 24
    """Length of the longest suffix that is matched."""
    min_match: Annotated[int, Field(ge=1, le=16)] = 1
    """Length of the shortest suffix that is matched."""
    tokens_per_match: Annotated[float, Field(gt=0.0, le=64.0)] = DEFAULT_TRUST
    """Maximum number of proposed tokens per matching token."""
    min_probability: MinProbability = 0.1
    """Minimum share of the earlier occurrences that must agree on a path; copying ends before the first
    token below it."""

    @model_validator(mode="after")
    def _ordered(self) -> SuffixDraft:
        if self.min_match > self.max_match:
            raise ValueError("min_match is larger than max_match (fix: swap them)")
        return self

    def sentence(self) -> str:
        return (
            f"copy what most often followed earlier matches of the last {self.max_match} to {self.min_match} tokens, "
            f"up to {self.tokens_per_match:g} tokens per matching token, while {self.min_probability:.0%} of the "
            "matches agree"
        )

    def uses(self, model: str, folder: str, k: int) -> tuple[ProgramUse, ...]:
        speculative = json.dumps(
            {
                "method": "suffix",
                "num_speculative_tokens": k,
                "suffix_decoding_max_tree_depth": self.max_match + k,
                "suffix_decoding_max_cached_requests": 0,
                "suffix_decoding_max_spec_factor": self.tokens_per_match,
                "suffix_decoding_min_token_prob": self.min_probability,
            }
        )
        return (ProgramUse("vLLM", "sh", f"vllm serve {model} --speculative-config '{speculative}'", None),)

    def open(self, context: ProposerContext) -> SuffixProposer:
        return SuffixProposer(
            self.min_match, self.max_match, self.tokens_per_match, self.min_probability, branching_of(context)
        )


class _Vote(NamedTuple):
    """What an earlier place says about the next token."""

    end: int
    """The place of that token."""
    weight: int
    """Tokens before the place that match."""
    agreed: int
    """The same, with those of the path behind it."""
    tokens: int
    """For how many more tokens it is trusted."""


class SuffixProposer(Proposer):
    """Finds every earlier place that ends like the context, and follows the majority.

    An index from the shortest run to where it has ended keeps a look-up independent of the context's length; no
    tree is kept, for the places that still vote are a node's whole content.
    """

    def __init__(
        self,
        min_match: int = 1,
        max_match: int = 24,
        tokens_per_match: float = DEFAULT_TRUST,
        min_probability: float = 0.1,
        branch_above: float | None = None,
    ) -> None:
        """Remembers what a recipe says; see `SuffixDraft`, and `Drafting` for the last."""
        self._branch_above = branch_above
        self._min, self._max = min_match, max_match
        self._trust = tokens_per_match
        self._least = min_probability
        self._ends: dict[tuple[int, ...], list[int]] = {}
        self._indexed = 0

    def begin(self, prompt: Sequence[int], sampler: object, reserve: int) -> None:
        self._ends.clear()
        self._indexed = 0
        self._index(prompt, len(prompt) - 1)

    def propose(self, context: Sequence[int], count: int) -> Proposal:
        """See `Proposer.propose`.

        Of all lengths of the match, the one is taken whose path has the largest sum of probabilities, which is how
        many of its tokens should be accepted if the places are right; of equals the longest. A tree holds the tokens that
        are most probable where each place's vote counts for as many as there are tokens that match, and where what was never
        said is expected too.
        """
        self._index(context, len(context) - 1)
        ends = self._ends.get(tuple(context[-self._min :]), [])[-_MAX_VOTERS:]
        if self._branch_above is not None:
            return proposal_of(self._tree(context, ends, count))
        matches = sorted(((self._matched(context, end), end) for end in ends), reverse=True)
        best: list[int] = []
        expected = 0.0
        for place, (length, _) in enumerate(matches, start=1):
            if place < len(matches) and matches[place][0] == length:
                continue  # a node holds every place that matches so far
            voters = [end for _, end in matches[:place]]
            path, score = self._followed(context, voters, min(count, ceil(self._trust * length)))
            if score > expected:
                best, expected = path, score
        return Proposal(best)

    def _matched(self, context: Sequence[int], end: int) -> int:
        """How many tokens before an earlier place agree with the context's last ones."""
        length = self._min
        most = min(self._max, end)
        while length < most and context[end - 1 - length] == context[-1 - length]:
            length += 1
        return length

    def _followed(self, context: Sequence[int], ends: list[int], count: int) -> tuple[list[int], float]:
        """The majority's path from these places on, and the sum of its tokens' probabilities."""
        path: list[int] = []
        probability, score = 1.0, 0.0
        while len(path) < count:
            followers: dict[int, list[int]] = {}
            for end in sorted(ends, reverse=True):  # of equally many the most recent comes first
                if end < len(context):
                    followers.setdefault(context[end], []).append(end + 1)
            if not followers:
                break
            token = max(followers, key=lambda one: len(followers[one]))
            probability *= len(followers[token]) / sum(map(len, followers.values()))
            if probability < self._least:
                break
            path.append(token)
            score += probability
            ends = followers[token]
        return path, score

    def _tree(self, context: Sequence[int], ends: list[int], count: int) -> list[Candidate]:
        """Up to `count` tokens, the most probable first; of equals those that were found first."""
        matched = [(end, self._matched(context, end)) for end in reversed(ends)]
        votes = [_Vote(end, length, length, ceil(self._trust * length)) for end, length in matched]
        found: list[Candidate] = []
        waiting: list[tuple[float, int, Candidate, list[_Vote]]] = []
        numbers, parent = itertools.count(), None
        while True:
            for one, theirs in self._following(context, votes, parent):
                heappush(waiting, (-one.path, next(numbers), one, theirs))
            if not waiting or len(found) == count:
                return found
            _, _, parent, votes = heappop(waiting)
            found.append(parent)

    def _following(
        self, context: Sequence[int], votes: list[_Vote], parent: Candidate | None
    ) -> Iterator[tuple[Candidate, list[_Vote]]]:
        """The tokens that are probable enough behind another one, and who votes for them."""
        assert self._branch_above is not None
        followers: dict[int, list[_Vote]] = {}
        for vote in votes:
            if vote.tokens and vote.end < len(context):
                after = _Vote(vote.end + 1, vote.weight, vote.agreed + 1, vote.tokens - 1)
                followers.setdefault(context[vote.end], []).append(after)
        # Places that say nothing more count as voices for something else.
        whole = sum(vote.weight for vote in votes)
        for token, theirs in followers.items():
            # Something that never stood there may follow too: the less likely, the more has agreed (Laplace's rule).
            agreed = max(vote.agreed for vote in theirs) + len(theirs) - 2
            share = sum(vote.weight for vote in theirs) / whole * agreed / (agreed + 2)
            path = share if parent is None else share * parent.path
            if path >= self._branch_above:
                yield Candidate(token, parent, path), theirs

    def _index(self, tokens: Sequence[int], until: int) -> None:
        for end in range(max(self._indexed + 1, self._min), until + 1):
            self._ends.setdefault(tuple(tokens[end - self._min : end]), []).append(end)
        self._indexed = max(self._indexed, until)
