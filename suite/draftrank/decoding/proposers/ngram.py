"""Prompt lookup: propose what followed the last time the same few tokens stood in the context.

Source: prompt lookup decoding (Saxena 2023), the model-free draft of transformers and vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from draftrank.catalog.draft import DraftBase
from draftrank.catalog.use import Use
from draftrank.decoding.proposer import Proposal, ProposerContext


class NgramDraft(DraftBase):
    """No model at all: copies from the prompt and from what was already emitted."""

    technique: ClassVar[str] = "n-gram"

    kind: Literal["ngram"]
    max_ngram: Annotated[int, Field(ge=1, le=16)] = 3
    """Longest run of last tokens that is looked up."""
    min_ngram: Annotated[int, Field(ge=1, le=16)] = 1
    """Shortest run that is still looked up; longer runs go first."""

    @model_validator(mode="after")
    def _ordered(self) -> NgramDraft:
        if self.min_ngram > self.max_ngram:
            raise ValueError("min_ngram is larger than max_ngram (fix: swap them)")
        return self

    def sentence(self) -> str:
        """See `DraftBase.sentence`."""
        return (
            f"copy what followed the last {self.max_ngram} to {self.min_ngram} tokens earlier in the context"
        )

    def uses(self, model: str, folder: str, k: int) -> tuple[Use, ...]:
        """See `DraftBase.uses`."""
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
        return (
            Use("transformers", "python", generate, None),
            Use("vLLM", "sh", f"vllm serve {model} --speculative-config '{speculative}'", None),
            Use("SGLang", "sh", sglang, own),
            Use("llama.cpp", "sh", f"llama-lookup -m TARGET.gguf --draft-max {k} -p PROMPT", own),
        )

    def open(self, context: ProposerContext) -> NgramProposer:
        """See `DraftBase.open`."""
        return NgramProposer(self.min_ngram, self.max_ngram)


class NgramProposer:
    """Finds the most recent earlier occurrence of the context's last tokens and copies onward.

    An index from every run of n tokens to where it last ended keeps a look-up independent of the
    context's length.
    """

    def __init__(self, min_ngram: int, max_ngram: int) -> None:
        self._sizes = range(max_ngram, min_ngram - 1, -1)
        self._ends: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def begin(self, prompt: Sequence[int], sampler: object, reserve: int) -> None:
        """See `Proposer.begin`."""
        self._ends.clear()
        self._indexed = 0
        self._index(prompt, len(prompt) - 1)

    def propose(self, context: Sequence[int], count: int) -> Proposal:
        """See `Proposer.propose`."""
        # Runs that end at the context's own end are left out: they would only find themselves.
        self._index(context, len(context) - 1)
        for size in self._sizes:
            if size >= len(context):
                continue
            end = self._ends.get(tuple(context[-size:]))
            if end is not None:
                return Proposal(list(context[end : end + count]))
        return Proposal([])

    def settle(self, accepted: int) -> None:
        """See `Proposer.settle`; nothing proposed is remembered."""

    def runtime(self) -> None:
        """See `Proposer.runtime`."""
        return

    def _index(self, tokens: Sequence[int], until: int) -> None:
        for end in range(self._indexed + 1, until + 1):
            for size in self._sizes:
                if size <= end:
                    self._ends[tuple(tokens[end - size : end])] = end
        self._indexed = max(self._indexed, until)
