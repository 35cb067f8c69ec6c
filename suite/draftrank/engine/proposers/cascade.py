"""Copy where there is something to copy, and ask a draft model where not.

Copying costs nothing and is often right where the text repeats; a model is right more often elsewhere. Source: the
vertical cascade of Cascade Speculative Drafting (Chen et al. 2023, arXiv:2312.11462), with n-grams of the context as
the cheaper of two drafts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from draftrank.catalog.programs import ProgramUse
from draftrank.engine.proposer import Proposal, Proposer, ProposerContext
from draftrank.engine.proposers.draft_model import ModelBasedDraft
from draftrank.engine.proposers.ngram import NgramDraft, NgramProposer, TokensPerMatch, trust_in_words
from draftrank.engine.proposers.suffix import DEFAULT_TRUST, MinProbability, SuffixDraft, SuffixProposer

if TYPE_CHECKING:
    from draftrank.engine.backends.base import Runtime
    from draftrank.engine.proposer import DeviceSteps
    from draftrank.engine.proposers.draft_model import ModelBasedProposer
    from draftrank.engine.sampling import Sampler


class CascadeDraft(ModelBasedDraft):
    """Prompt lookup or suffix decoding first; a draft model proposes where they find no match."""

    technique: ClassVar[str] = "cascade"

    kind: Literal["cascade"]
    max_ngram: Annotated[int, Field(ge=1, le=16)] = 4
    """Length of the longest match that is looked up."""
    min_ngram: Annotated[int, Field(ge=1, le=16)] = 2
    """Length of the shortest match that is copied; below it the model proposes."""
    tokens_per_match: TokensPerMatch = None
    """Maximum number of copied tokens per matching token; the match counts as far back as both positions
    agree. Absent: k tokens with prompt lookup, one per matching token with suffix decoding."""
    min_probability: MinProbability | None = None
    """Copies with suffix decoding, and stops before the first token that fewer than this share of the earlier
    occurrences agree on. Absent: prompt lookup, which copies after the most recent occurrence."""

    max_model_tokens: Annotated[int, Field(ge=1, le=64)] | None = None
    """Maximum number of tokens that the model proposes per step, where copying may propose more; absent: k."""

    @model_validator(mode="after")
    def _runs_ordered(self) -> Self:
        if self.min_ngram > self.max_ngram:
            raise ValueError("min_ngram is larger than max_ngram (fix: swap them)")
        return self

    @property
    def techniques(self) -> tuple[str, ...]:
        return (*super().techniques, (NgramDraft if self.min_probability is None else SuffixDraft).technique)

    def sentence(self) -> str:
        followed = (
            "followed the most recent match"
            if self.min_probability is None
            else "most often followed earlier matches"
        )
        agreeing = (
            "" if self.min_probability is None else f", while {self.min_probability:.0%} of the matches agree"
        )
        few = self.max_model_tokens
        for_few = "" if few is None else f" for at most {few} token{'s' if few > 1 else ''}"
        return (
            f"copy what {followed} of the last {self.max_ngram} to {self.min_ngram} tokens"
            f"{trust_in_words(self.tokens_per_match)}{agreeing}; without a match, propose with a model"
            f"{for_few}, made {super().sentence()}"
        )

    def uses(self, model: str, folder: str, k: int) -> tuple[ProgramUse, ...]:
        """See `DraftBase.uses`: the model alone, since both together were measured here only."""
        alone = "the model alone, without the copying that was measured with it"
        found = super().uses(model, folder, k)
        return tuple(
            _with_copying(use) if use.program == "llama.cpp" else _remarked(use, alone) for use in found
        )

    def open(self, context: ProposerContext) -> CascadeProposer:
        return CascadeProposer(self._copying(), self.open_model(context), self.max_model_tokens)

    def _copying(self) -> NgramProposer | SuffixProposer:
        if self.min_probability is None:
            return NgramProposer(self.min_ngram, self.max_ngram, self.tokens_per_match)
        trust = DEFAULT_TRUST if self.tokens_per_match is None else self.tokens_per_match
        return SuffixProposer(self.min_ngram, self.max_ngram, trust, self.min_probability)


def _remarked(use: ProgramUse, remark: str) -> ProgramUse:
    """With a remark, unless the program cannot run the draft at all."""
    return use if use.snippet is None else replace(use, remark="; ".join(filter(None, (use.remark, remark))))


def _with_copying(use: ProgramUse) -> ProgramUse:
    """llama.cpp asks several methods in turn."""
    if use.snippet is None:
        return use
    both = replace(use, snippet=use.snippet.replace("--spec-type ", "--spec-type ngram-simple,"))
    return _remarked(both, "it copies by a rule of its own, where a single run of tokens matches")


class CascadeProposer(Proposer):
    """Asks the first proposer, and the model where the first has nothing to say."""

    def __init__(
        self,
        first: NgramProposer | SuffixProposer,
        model: ModelBasedProposer,
        max_model_tokens: int | None = None,
    ) -> None:
        """Puts the two together: the model is asked where the first has nothing, for at most so many tokens; None: for as
        many as the step may verify."""
        self._first = first
        self._model = model
        self._most = max_model_tokens
        self._asked_model = False
        self.translates, self.reads_target = model.translates, model.reads_target

    def begin(self, prompt: Sequence[int], sampler: Sampler, reserve: int) -> None:
        self._first.begin(prompt, sampler, reserve)
        self._model.begin(prompt, sampler, reserve)

    def propose(self, context: Sequence[int], count: int) -> Proposal:
        copied = self._first.propose(context, count)
        self._asked_model = not copied.tokens
        if not self._asked_model:
            return copied
        return self._model.propose(context, count if self._most is None else min(count, self._most))

    def accept(self, tokens: Sequence[int]) -> None:
        if self._asked_model:
            self._model.accept(tokens)
        else:
            self.observe(tokens)

    def observe(self, tokens: Sequence[int]) -> None:
        self._model.observe(tokens)

    def device_steps(self, target: Runtime, sampler: Sampler, count: int) -> DeviceSteps | None:
        """See `Proposer.device_steps`; the model proposes while the host looks for something to copy."""
        return self._model.device_steps(target, sampler, count, self._most, self._first.propose)

    def known(self) -> frozenset[int] | None:
        return self._model.known()

    def runtime(self) -> Runtime:
        return self._model.runtime()
