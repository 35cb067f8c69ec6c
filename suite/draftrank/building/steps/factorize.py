"""Replace matrices by the product of two thin ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from draftrank.building.steps.trim_vocabulary import TrimVocabulary
from draftrank.catalog.step import Phase, StepBase, Trait

if TYPE_CHECKING:
    from collections.abc import Sequence

    from draftrank.building.working_draft import BuildContext, WorkingDraft

Share = Annotated[float, Field(gt=0.0, le=1.0)]


class Factorize(StepBase):
    """Replaces the decoder's linear layers by truncated singular value decompositions."""

    technique: ClassVar[str] = "low rank"
    phase: ClassVar[Phase] = "factors"
    adds: ClassVar[Trait | None] = "factors"
    paper: ClassVar[str] = "SVD-LLM (arXiv:2403.07378); plain: Eckart and Young (1936)"
    cost: ClassVar[str] = "seconds to a minute; time and memory fall with the rank, agreement steeply"

    kind: Literal["factorize"]
    keep_parameters: Share
    """Share of each matrix's parameters that its two factors hold; determines the rank."""
    activation_aware: bool = True
    """Whether to approximate the outputs on the calibration text (true) or the weights (false)."""
    matrices: Literal["all", "attention", "feed_forward"] = "all"
    """Matrices of each layer to factorize."""

    def sentence(self) -> str:
        which = {"all": "all", "attention": "the attention's", "feed_forward": "the feed-forward"}[
            self.matrices
        ]
        how = ", approximating their outputs" if self.activation_aware else ""
        return f"factorize {which} matrices to {self.keep_parameters:.0%} of their parameters{how}"

    def fault(self, before: Sequence[StepBase]) -> str | None:
        for step in before:
            if isinstance(step, Factorize) and (
                step.matrices == self.matrices or "all" in (step.matrices, self.matrices)
            ):
                return "factorize stands twice for the same matrices (fix: write it once for each kind)"
        return None

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.low_rank import factorize_layers
        from draftrank.building.text.corpus import calibration_tokens

        text = calibration_tokens(context) if self.activation_aware else None
        factorize_layers(draft, self.keep_parameters, self.matrices, text, context.progress)


class FactorizeHead(StepBase):
    """Replaces the head by a truncated singular value decomposition."""

    technique: ClassVar[str] = "low-rank head"
    phase: ClassVar[Phase] = "head"
    adds: ClassVar[Trait | None] = "factors"
    paper: ClassVar[str] = "GroupReduce (arXiv:1806.06950); SVD-LLM (arXiv:2403.07378)"
    cost: ClassVar[str] = "a minute; the head, most of a shallow draft's bytes, shrinks with the rank"

    kind: Literal["factorize_head"]
    rank: Annotated[int, Field(ge=1, le=100_000)]
    """Rank of the factorized head."""
    activation_aware: bool = True
    """Whether to approximate the logits on the calibration text (true) or the weights (false)."""

    def sentence(self) -> str:
        return f"factorize the head to rank {self.rank}"

    def fault(self, before: Sequence[StepBase]) -> str | None:
        for step in before:
            if isinstance(step, FactorizeHead):
                return "factorize_head stands twice (fix: write it once)"
            if isinstance(step, TrimVocabulary) and step.keep_tokens < self.rank:
                return (
                    f"a head of {step.keep_tokens:,} tokens has no rank {self.rank:,} (fix: write at most {step.keep_tokens} in "
                    "rank)"
                )
        return None

    def check(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.fitting import require_called_head
        from draftrank.building.surgery.low_rank import require_rank
        from draftrank.models.forms import TrimmedHead

        require_called_head(draft)
        head = draft.architecture.head(draft.model)
        require_rank(head.projection if isinstance(head, TrimmedHead) else head, self.rank)

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.low_rank import factorize_head
        from draftrank.building.text.corpus import calibration_tokens

        factorize_head(draft, self.rank, calibration_tokens(context) if self.activation_aware else None)
