"""Make one layer of several consecutive ones, by adding their differences to the first (LaCo)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from draftrank.catalog.step import Phase, StepBase

if TYPE_CHECKING:
    from draftrank.building.working_draft import BuildContext, WorkingDraft


class MergeLayers(StepBase):
    """A shallower model whose layers combine the weights of several; needs distillation, as dropping does."""

    technique: ClassVar[str] = "layer merging"
    phase: ClassVar[Phase] = "structure"
    paper: ClassVar[str] = "LaCo (arXiv:2402.11187)"
    cost: ClassVar[str] = "minutes; time and memory fall with depth, agreement nearly to nothing"
    architectures: ClassVar[str] = (
        "those with layers of one kind that do not compute by the layer's index and no parts made for all layers"
    )

    kind: Literal["merge_layers"]
    keep: Annotated[int, Field(ge=1, le=10_000)]
    """Number of layers that remain."""
    group: Annotated[int, Field(ge=2, le=64)] = 3
    """Maximum number of adjacent layers merged into one per round."""

    def sentence(self) -> str:
        return f"merge layers, up to {self.group} into one, until {self.keep} remain"

    def check(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.layer_merging import require_layers

        require_layers(self.keep, len(draft.architecture.blocks))

    def check_shape(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.fitting import require_alike, require_depth

        require_alike(draft)
        require_depth(draft, self.keep)

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.layer_merging import MERGING_SEQUENCES, merge_layers
        from draftrank.building.text.corpus import calibration_tokens

        tokens = calibration_tokens(context)[:MERGING_SEQUENCES]
        draft.notes["merged_layers"] = merge_layers(draft, self.keep, self.group, tokens, context.progress)
