"""Narrower drafts: fewer feed-forward channels, fewer heads, a thinner residual stream.

What stays is chosen by importance; the result is an ordinary model of a smaller configuration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from draftrank.catalog.step import Phase, StepBase

if TYPE_CHECKING:
    from torch import Tensor

    from draftrank.building.working_draft import BuildContext, WorkingDraft

Count = Annotated[int, Field(ge=1, le=10_000_000)]


class WidthStep(StepBase):
    """What the three have in common."""

    technique: ClassVar[str] = "width pruning"
    phase: ClassVar[Phase] = "structure"
    paper: ClassVar[str] = "Minitron (arXiv:2407.14679), LLM-Pruner (arXiv:2305.11627)"
    cost: ClassVar[str] = "seconds to a minute; time and memory fall with width, agreement steeply"

    importance: Literal["magnitude", "activation", "taylor"] = "activation"
    """Criterion of what is kept: the largest weights (`magnitude`), the largest activations on the
    calibration text, weighted by the matrices that read them (`activation`), or the largest first-order
    effect on the loss (`taylor`)."""

    def _text(self, context: BuildContext) -> Tensor | None:
        from draftrank.building.text.corpus import calibration_tokens

        return None if self.importance == "magnitude" else calibration_tokens(context)

    def _measure(self) -> str:
        return {
            "magnitude": "largest weights",
            "activation": "largest activations",
            "taylor": "largest effect",
        }[self.importance]


class PruneFfn(WidthStep):
    """Fewer channels in every feed-forward network, where most of a layer's weights are."""

    architectures: ClassVar[str] = "those with dense feed-forward networks of a size of their own"

    kind: Literal["prune_ffn"]
    keep_channels: Count
    """Number of channels kept in each layer."""

    def sentence(self) -> str:
        return (
            f"keep the {self.keep_channels:,} feed-forward channels of each layer with the {self._measure()}"
        )

    def check(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.width import check_feed_forward

        check_feed_forward(draft, self.keep_channels)

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.width import prune_feed_forward

        prune_feed_forward(draft, self.keep_channels, self.importance, self._text(context))


class PruneHeads(WidthStep):
    """Fewer attention heads in every layer: whole query groups, or heads within each group."""

    architectures: ClassVar[str] = (
        "those with separate matrices of queries, keys and values, and a head size of their own"
    )

    kind: Literal["prune_heads"]
    keep_groups: Count | None = None
    """Number of query groups (one KV head with its query heads) kept in each layer; absent: all."""
    keep_heads_per_group: Count | None = None
    """Number of query heads kept in each group; absent: all."""

    @model_validator(mode="after")
    def _something(self) -> PruneHeads:
        if self.keep_groups is None and self.keep_heads_per_group is None:
            raise ValueError("nothing is pruned (fix: write keep_groups, keep_heads_per_group or both)")
        return self

    def sentence(self) -> str:
        parts = [
            f"{self.keep_groups} query groups per layer" if self.keep_groups else "",
            f"{self.keep_heads_per_group} query heads per group" if self.keep_heads_per_group else "",
        ]
        return f"keep {' and '.join(filter(None, parts))}, those with the {self._measure()}"

    def check(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.fitting import require_independent_heads
        from draftrank.building.surgery.width import check_heads

        check_heads(draft, self.keep_groups, self.keep_heads_per_group)
        require_independent_heads(draft.architecture, draft.model)

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.width import prune_heads

        text = self._text(context)
        prune_heads(draft, self.keep_groups, self.keep_heads_per_group, self.importance, text)


class PruneHidden(WidthStep):
    """A narrower residual stream: every matrix of the model shrinks, the head included."""

    architectures: ClassVar[str] = "those of `prune_ffn` and `prune_heads` with RMS norms"

    kind: Literal["prune_hidden"]
    keep_channels: Count
    """Number of channels kept, the same in all layers."""

    def sentence(self) -> str:
        return f"keep the {self.keep_channels:,} hidden channels with the {self._measure()}"

    def check(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.width import check_hidden

        check_hidden(draft, self.keep_channels)

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.width import prune_hidden

        prune_hidden(draft, self.keep_channels, self.importance, self._text(context))
