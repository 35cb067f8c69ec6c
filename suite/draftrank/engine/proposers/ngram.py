"""Prompt lookup: proposes what followed the most recent occurrence of the context's last tokens.

Source: prompt lookup decoding (Saxena 2023), the model-free draft of transformers and vLLM; to trust a longer match
for more tokens is from SuffixDecoding (Oliaro et al. 2024, arXiv:2411.04975).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import ceil
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from draftrank.catalog.draft import DraftBase
from draftrank.catalog.programs import ProgramUse
from draftrank.engine.proposer import Proposal, Proposer, ProposerContext

TokensPerMatch = Annotated[float, Field(gt=0.0, le=64.0)] | None


def trust_in_words(tokens_per_match: float | None) -> str:
    """The end of a draft's sentence that says how much it copies; empty where it does not depend on the match."""
    return "" if tokens_per_match is None else f", up to {tokens_per_match:g} tokens per matching token"


class NgramDraft(DraftBase):
    """Prompt lookup: copies what followed the most recent occurrence of the context's last tokens. Needs no
    model."""

    technique: ClassVar[str] = "n-gram"

    kind: Literal["ngram"]
    max_ngram: Annotated[int, Field(ge=1, le=16)] = 3
    """Length of the longest n-gram that is looked up."""
    min_ngram: Annotated[int, Field(ge=1, le=16)] = 1
    """Length of the shortest n-gram that is looked up; longer ones are tried first."""
    tokens_per_match: TokensPerMatch = None
    """Maximum number of proposed tokens per matching token; the match counts as far back as both positions
    agree. Absent: k tokens, whatever the match."""

    @model_validator(mode="after")
    def _ordered(self) -> NgramDraft:
        if self.min_ngram > self.max_ngram:
            raise ValueError("min_ngram is larger than max_ngram (fix: swap them)")
        return self

    def sentence(self) -> str:
        told = f"copy what followed the most recent match of the last {self.max_ngram} to {self.min_ngram} tokens"
        return told + trust_in_words(self.tokens_per_match)

    def uses(self, model: str, folder: str, k: int) -> tuple[ProgramUse, ...]:
        speculative = json.dumps(
            {
                "method": "ngram",
                "num_speculative_tokens": k,
                "prompt_lookup_max": self.max_ngram,
                "prompt_lookup_min": self.min_ngram,
            }
        )
        generate = (
            f"target.generate(**inputs, prompt_lookup_num_tokens={k}, "
            f"max_matching_ngram_size={self.max_ngram})"
        )
        sglang = (
            f"python -m sglang.launch_server --model-path {model} --speculative-algorithm NGRAM "
            f"--speculative-num-draft-tokens {k + 1}"
        )
        own = "the runs it looks up have lengths of its own"
        always = None if self.tokens_per_match is None else f"it proposes {k} tokens whatever matches"
        return (
            ProgramUse("transformers", "python", generate, always),
            ProgramUse("vLLM", "sh", f"vllm serve {model} --speculative-config '{speculative}'", always),
            ProgramUse("SGLang", "sh", sglang, own),
            ProgramUse("llama.cpp", "sh", f"llama-lookup -m TARGET.gguf --draft-max {k} -p PROMPT", own),
        )

    def open(self, context: ProposerContext) -> NgramProposer:
        return NgramProposer(self.min_ngram, self.max_ngram, self.tokens_per_match)


class NgramProposer(Proposer):
    """Finds the most recent earlier occurrence of the context's last tokens and copies onward.

    An index from every run of n tokens to where it last ended keeps a look-up independent of the
    context's length.
    """

    def __init__(self, min_ngram: int, max_ngram: int, tokens_per_match: float | None = None) -> None:
        self._trust = tokens_per_match
        self._sizes = range(max_ngram, min_ngram - 1, -1)
        self._ends: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def begin(self, prompt: Sequence[int], sampler: object, reserve: int) -> None:
        self._ends.clear()
        self._indexed = 0
        self._index(prompt, len(prompt) - 1)

    def propose(self, context: Sequence[int], count: int) -> Proposal:
        # Runs that end at the context's own end are left out: they would only find themselves.
        self._index(context, len(context) - 1)
        for size in self._sizes:
            if size >= len(context):
                continue
            end = self._ends.get(tuple(context[-size:]))
            if end is not None:
                return Proposal(list(context[end : end + self._trusted(context, end, size, count)]))
        return Proposal([])

    def _trusted(self, context: Sequence[int], end: int, matched: int, count: int) -> int:
        """How many of `count` tokens to propose behind an earlier match, of which `matched` tokens are known to agree."""
        if self._trust is None:
            return count
        while (
            matched < end
            and matched * self._trust < count
            and context[end - 1 - matched] == context[-1 - matched]
        ):
            matched += 1
        return min(count, ceil(matched * self._trust))

    def _index(self, tokens: Sequence[int], until: int) -> None:
        for end in range(self._indexed + 1, until + 1):
            for size in self._sizes:
                if size <= end:
                    self._ends[tuple(tokens[end - size : end])] = end
        self._indexed = max(self._indexed, until)
