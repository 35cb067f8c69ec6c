"""Keep some decoder layers, drop the rest.

`keep: N` chooses by `select`; a list names the layers. Block influence is ShortGPT's score
(Men et al. 2024, arXiv:2403.03853): one minus the mean cosine similarity between a layer's input
and output, so that a layer that hardly turns the hidden state goes first. The angular distance is that of
Gromov et al. (2024, arXiv:2403.17887), for a block of consecutive layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from draftrank.catalog.step import Phase, StepBase

if TYPE_CHECKING:
    from draftrank.building.working_draft import BuildContext, WorkingDraft

LayerIndex = Annotated[int, Field(ge=0, le=10_000)]


class DropLayers(StepBase):
    """A shallower model. Latency falls with depth; agreement falls faster until the model is distilled."""

    technique: ClassVar[str] = "layer dropping"
    phase: ClassVar[Phase] = "structure"
    paper: ClassVar[str] = "ShortGPT (arXiv:2403.03853), Gromov et al. (arXiv:2403.17887)"
    cost: ClassVar[str] = (
        "seconds (`loss`: minutes); time and memory fall with depth, agreement nearly to nothing"
    )
    architectures: ClassVar[str] = (
        "all but those that compute by the layer's index or have parts made for all layers; of a hybrid, an attention layer "
        "stays"
    )

    kind: Literal["drop_layers"]
    keep: Annotated[int, Field(ge=1, le=10_000)] | Annotated[tuple[LayerIndex, ...], Field(min_length=1)]
    """Number of layers to keep, or their indices (from 0, ascending)."""
    select: Literal["ends", "even", "first", "block_influence", "angular", "loss"] | None = None
    """How layers are chosen if `keep` is a number. `ends` keeps the first and last halves, `even` spreads
    them, `first` keeps the first ones. `block_influence` drops the layers with the least influence,
    `angular` the consecutive block that rotates the hidden state least, `loss` one layer after another,
    each time the one whose removal raises the loss on the calibration text least."""

    @model_validator(mode="after")
    def _coherent(self) -> DropLayers:
        if isinstance(self.keep, int):
            if self.select is None:
                raise ValueError("select is missing beside a number of layers (fix: add `select: ends`)")
        else:
            if self.select is not None:
                raise ValueError("select has no meaning beside named layers (fix: remove `select`)")
            if list(self.keep) != sorted(set(self.keep)):
                raise ValueError("the layers are not ascending and unique (fix: sort them)")
        return self

    def sentence(self) -> str:
        if isinstance(self.keep, int):
            how = {
                "ends": "the first and last ones",
                "even": "evenly spread",
                "first": "the first ones",
                "block_influence": "those with the highest block influence",
                "angular": "without the consecutive block that rotates the hidden state least",
                "loss": "dropping one by one the layer whose removal raises the loss least",
            }[self.select or "ends"]
            return f"keep {self.keep} layers, {how}"
        return f"keep layer{'s' if len(self.keep) > 1 else ''} {', '.join(map(str, self.keep))}"

    def check(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.fitting import require_depth
        from draftrank.building.surgery.layer_selection import named_layers

        named = named_layers(self.keep, self.select, len(draft.architecture.blocks))
        require_depth(draft, self.keep if named is None else named)

    def apply(self, draft: WorkingDraft, context: BuildContext) -> None:
        from draftrank.building.surgery.layer_selection import choose_layers

        kept = choose_layers(self.keep, self.select, draft, context)
        draft.architecture.keep_layers(draft.model, kept)
        before = draft.notes.get("kept_layers") or range(kept[-1] + 1)
        draft.notes["kept_layers"] = [before[index] for index in kept]
