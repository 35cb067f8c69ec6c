"""The target's own first layers and head as the draft.

Source: draft and verify by skipping layers (Zhang et al. 2023, arXiv:2309.08168) and early exit
(LayerSkip, Elhoushi et al. 2024, arXiv:2404.16710). No weights of its own and no second cache: the
draft reads and writes the cache of the layers it shares, and takes its tokens back before the target
verifies them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from draftrank.catalog.draft import DraftBase
from draftrank.catalog.programs import ProgramUse
from draftrank.engine.proposer import Proposal, Proposer, ProposerContext
from draftrank.engine.proposers.drafting import PLAIN, Drafting, draft_tokens, drafting_of
from draftrank.errors import IncompatibleDraftError

if TYPE_CHECKING:
    from draftrank.engine.backends.base import Runtime
    from draftrank.engine.sampling import Sampler


class EarlyExitDraft(DraftBase):
    """The target's own first layers and head as the draft. Works well only for targets trained for early
    exit; costs no memory."""

    technique: ClassVar[str] = "early exit"
    has_confidence: ClassVar[bool] = True
    branches: ClassVar[bool] = True

    kind: Literal["early_exit"]
    layers: Annotated[int, Field(ge=1, le=10_000)]
    """Number of the target's first layers that propose."""

    def sentence(self) -> str:
        return f"the target's own first {self.layers} layers with its head"

    def uses(self, model: str, folder: str, k: int) -> tuple[ProgramUse, ...]:
        generate = f"target.generate(**inputs, assistant_early_exit={self.layers})"
        reason = "it has no way to let some of the target's layers propose for all of them"
        others = (ProgramUse(program, "sh", None, reason) for program in ("vLLM", "SGLang", "llama.cpp"))
        return (ProgramUse("transformers", "python", generate, None), *others)

    def open(self, context: ProposerContext) -> EarlyExitProposer:
        from draftrank.engine.backends.own_forward import check_forward, check_trees

        if not context.target.capabilities.first_layers:
            raise IncompatibleDraftError(
                f"the backend {context.target.name} cannot run the first layers of this target alone: use another draft"
            )
        view, drafting = context.target.first_layers(self.layers), drafting_of(context)
        check_forward(view)
        if drafting.branch_above is not None:
            check_trees(view)
        return EarlyExitProposer(view, drafting)


class EarlyExitProposer(Proposer):
    """Proposes like a model whose KV cache always equals the target's: all it reads is rolled back when it has proposed."""

    reads_target = True

    def __init__(self, view: Runtime, drafting: Drafting = PLAIN) -> None:
        self._view = view
        self._drafting = drafting
        self._sampler: Sampler | None = None

    def begin(self, prompt: Sequence[int], sampler: Sampler, reserve: int) -> None:
        """See `Proposer.begin`; the target's prefill has filled the shared cache already."""
        self._sampler = sampler

    def propose(self, context: Sequence[int], count: int) -> Proposal:
        assert self._sampler is not None
        read = self._view.length
        proposal = draft_tokens(self._view, self._sampler, context[read:], count, self._drafting)
        self._view.rollback(self._view.length - read)
        return proposal

    def runtime(self) -> Runtime:
        return self._view
