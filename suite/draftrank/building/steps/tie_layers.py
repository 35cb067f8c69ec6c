"""Let several layers use one layer's weights.

A forward computes as much as before, but reads fewer different bytes: what is used again may still lie in
the processor's cache. Weight sharing across layers is ALBERT's (Lan et al. 2019, arXiv:1909.11942); for
small models, MobileLLM's block-wise form (Liu et al. 2024, arXiv:2402.14905).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from draftrank.catalog.step import Phase, StepBase, Trait

if TYPE_CHECKING:
    from draftrank.building.working_draft import BuildContext, WorkingDraft


class TieLayers(StepBase):
    """Shares weights between layers: fewer bytes at equal depth; needs distillation."""

    technique: ClassVar[str] = "layer tying"
    phase: ClassVar[Phase] = "tying"
    adds: ClassVar[Trait | None] = "shared layers"
    paper: ClassVar[str] = "ALBERT (arXiv:1909.11942), MobileLLM (arXiv:2402.14905)"
    cost: ClassVar[str] = "seconds; fewer parameters at equal depth, agreement nearly to nothing"

    architectures: ClassVar[str] = "those with layers of one kind"

    kind: Literal["tie_layers"]
    blocks: Annotated[int, Field(ge=1, le=10_000)]
    """Number of distinct layers that remain: the layers are split into this many consecutive groups, and each
    group uses the weights of its first layer."""

    def sentence(self) -> str:
        return f"share the weights of {self.blocks} layers between all layers"

    def check(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.errors import BuildError

        depth = len(draft.architecture.blocks)
        if self.blocks > depth:
            raise BuildError(f"the model has {depth} layers: write at most {depth} in blocks")

    def check_shape(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.fitting import require_alike

        require_alike(draft)

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.models.forms import TiedLayersForm

        depth = len(draft.architecture.layers(draft.model))
        group = [place * self.blocks // depth for place in range(depth)]
        sources = tuple(group.index(block) for block in group)
        shape = draft.architecture
        form = TiedLayersForm(layers=shape.layers_name, sources=sources)
        form.prepare(draft.model)
        draft.forms.append(form)
